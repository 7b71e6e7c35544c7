"""Every Python block of the README runs, and its two commands are there as .ci/run expects them."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("source", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_python_blocks_run(source):
    exec(compile(source, "README.md", "exec"), {})


def test_there_are_blocks():
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("command", ["pip install '.[cli]' && fastconv bench", "pip install '.[test]' && pytest"])
def test_the_two_commands_stand_on_lines_of_their_own(command):
    assert f"\n{command}\n" in README


def test_commands_of_the_tour_exist():
    from fastconv.cli import main

    for name in re.findall(r"`fastconv (\w+)`|, `(\w+)`(?=[,. ])", README[README.index("### Commands"):README.index("### Benchmarks")]):
        command = next(filter(None, name))
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
