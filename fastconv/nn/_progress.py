"""What a training run shows while it runs: a bar of rich or tqdm in a terminal, a line an epoch everywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Display", "display"]

REFRESH_SECONDS = 0.1  # between two changes of the bar


class Display:
    """Shows nothing: the others override what they show."""

    def step(self, epoch: int, done: int, loss: float) -> None:
        """After a step: the epoch it belongs to, the steps done in it, the mean loss so far."""

    def line(self, text: str) -> None:
        """After an epoch."""


class _Lines(Display):
    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bar(Display):
    """A bar over the steps of an epoch, seldom redrawn."""

    def __init__(self, bar: Any, epochs: int):
        self.bar, self.epochs, self.drawn = bar, epochs, 0.0

    def step(self, epoch: int, done: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.drawn >= REFRESH_SECONDS:
            self.drawn = now
            self.draw(done, f"epoch {epoch}/{self.epochs}  loss {loss:.4f}")

    def draw(self, done: int, text: str) -> None:
        """Redraw the bar."""


class _Rich(_Bar):
    def draw(self, done: int, text: str) -> None:
        self.bar.update(self.bar.task_ids[0], completed=done, description=text)

    def line(self, text: str) -> None:
        self.bar.console.print(text, highlight=False, markup=False)


class _Tqdm(_Bar):
    def draw(self, done: int, text: str) -> None:
        self.bar.n = done
        self.bar.set_description_str(text)

    def line(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)


@contextmanager
def display(shown: bool, epochs: int, steps: int) -> Iterator[Display]:
    """The best display there is: of rich, of tqdm, or lines; none if not `shown`."""
    if not shown or not sys.stderr or not sys.stderr.isatty():
        yield _Lines() if shown and sys.stderr else Display()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        with _tqdm(epochs, steps) as lines:
            yield lines
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1 / REFRESH_SECONDS) as bar:
        bar.add_task("", total=steps)
        yield _Rich(bar, epochs)


@contextmanager
def _tqdm(epochs: int, steps: int) -> Iterator[Display]:
    try:
        from tqdm import tqdm
    except ImportError:
        yield _Lines()
        return
    with tqdm(total=steps, leave=False) as bar:
        yield _Tqdm(bar, epochs)
