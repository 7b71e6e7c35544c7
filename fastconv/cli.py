"""The command `fastconv`: bench, explain, tune, warmup, info, filter and train. One small function per subcommand.

Exit status: 0 done, 1 the benchmark's results disagree, 2 wrong usage, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastconv as fc
from fastconv import imaging
from fastconv.bench import measure, page, report
from fastconv.bench.suite import SUITES, select
from fastconv.problem import ACCURACIES

__all__ = ["main"]

DTYPES = ("float32", "float64")
PADDING_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")


class UsageError(Exception):
    """Something the caller asked for that cannot be done; its text is the whole message."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (those of the process by default) and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?" instead of a traceback
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nfastconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UsageError, OSError) as error:
        print(f"fastconv {options.command}: error: {error}", file=sys.stderr)
        return 2
    return status


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn the library's complaints about what the caller typed into one line; elsewhere they are bugs and show whole."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


# -- subcommands --------------------------------------------------------------------------------------------------------


def _bench(options: argparse.Namespace) -> int:
    with _usage_errors():
        items = select(options.suite, options.layer)
        backends = measure.check_backends(options.backend, options.device)
        if options.device != "cpu":
            fc.explain((1, 1, 1, 1), (1, 1, 1, 1), backend=options.device)
        fc.explain((1, 1, 1, 1), (1, 1, 1, 1))  # complains about environment variables with values that are none
    for path in filter(None, (options.json, options.html)):
        _check_writable(path)
    with _threads(options.threads), report.progress(len(items)) as advance:
        result = measure.run(items, backends, advance, options.seconds, options.device)
    report.print_report(result)
    for path, write in ((options.json, report.write_json), (options.html, page.write_html)):
        if path:
            write(result, path)
            print(f"wrote {path}")
    return 0 if result.verified else 1


def _explain(options: argparse.Namespace) -> int:
    with _usage_errors():
        print(fc.explain(options.input_shape, options.weight_shape, dtype=options.dtype, **_conv_options(options)))
    return 0


def _tune(options: argparse.Namespace) -> int:
    problems = _tune_problems(options)
    for index, (input_shape, weight_shape, keywords) in enumerate(problems, start=1):
        with _usage_errors():
            fc.tune([(input_shape, weight_shape, {"dtype": options.dtype, **keywords})])
            explained = fc.explain(input_shape, weight_shape, dtype=options.dtype, **keywords)
        shapes = " * ".join("x".join(map(str, shape)) for shape in (input_shape, weight_shape))
        print(f"[{index}/{len(problems)}] {shapes}: {_measured_text(explained)}", flush=True)
    return 0


def _warmup(options: argparse.Namespace) -> int:
    with _usage_errors():
        fc.get_num_threads()  # complains about a value of FASTCONV_NUM_THREADS that is none
    compiled = fc.warmup(tuple(dict.fromkeys(options.dtype or ["float32"])), operations=not options.convolutions)
    for name, seconds in compiled:
        print(f"{seconds:7.2f} s  {name}")
    print(f"{len(compiled)} kernels ready, {sum(seconds for _, seconds in compiled):.1f} s")
    return 0


def _info(options: argparse.Namespace) -> int:
    from fastconv import config

    with _usage_errors():
        fc.get_num_threads()
    for line in _lines(config.describe()):
        print(line)
    return 0


def _filter(options: argparse.Namespace) -> int:
    with _usage_errors():
        kernel = imaging.filter_kernel(options.kernel, size=options.size, sigma=options.sigma, angle=options.angle)
        image, details = imaging.read_image(options.input)
        filtered = imaging.filter_image(image, kernel, options.mode, options.absolute)
        _check_writable(options.output)
        imaging.write_image(options.output, filtered, details)
    return 0


def _train(options: argparse.Namespace) -> int:
    from fastconv.train import digits, page, picture

    for path in filter(None, (options.html, options.png, options.save)):
        _check_writable(path)
    if options.png:
        picture.check_pillow()
    if options.save and options.save.suffix not in (".npz", ".safetensors"):
        raise UsageError(f"--save must end in .npz or .safetensors, got {options.save}")
    settings = digits.Settings(options.epochs, options.batch_size, options.learning_rate, options.held_out, options.seed,
                               options.checkpoint)
    with _threads(options.threads), _usage_errors():
        outcome = digits.train(settings)
    for line in digits.lines(outcome):
        print(line)
    for path, write in ((options.html, page.write_html), (options.png, picture.write_png)):
        if path:
            write(outcome, path)
            print(f"wrote {path}")
    if options.save:
        fc.nn.save(outcome.model, options.save)
        print(f"wrote {options.save}")
    if not (options.html or options.png):
        print("--html FILE or --png FILE writes the confusion matrix and the learned filters as a picture")
    return 0


# -- help for the subcommands ---------------------------------------------------------------------------------------------


def _tune_problems(options: argparse.Namespace) -> list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]]:
    if bool(options.shapes) == bool(options.suite):
        raise UsageError("give either pairs of shapes (INPUT WEIGHT ...) or --suite")
    if options.suite:
        with _usage_errors():
            return [(item.input_shape, item.weight_shape, item.options) for item in select(options.suite, options.layer)]
    if len(options.shapes) % 2:
        raise UsageError(f"shapes come in pairs, INPUT WEIGHT, got {len(options.shapes)} of them")
    return [(*pair, _conv_options(options)) for pair in zip(options.shapes[::2], options.shapes[1::2], strict=True)]


def _measured_text(explained: Any) -> str:
    measured = [(c.measured_seconds, c.name) for c in explained.candidates if c.measured_seconds is not None]
    times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for seconds, name in sorted(measured))
    return f"{explained.chosen}" + (f" ({times})" if times else "")


def _conv_options(options: argparse.Namespace) -> dict[str, Any]:
    """The convolution options that were given; the library's defaults stand for the others."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode", "layout", "activation", "accuracy")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is None:
        yield
        return
    if count > (most := os.cpu_count() or 1):
        raise UsageError(f"--threads {count}: this machine has {most} processors")
    before = fc.get_num_threads()
    with _usage_errors():
        fc.set_num_threads(count)
    try:
        yield
    finally:
        fc.set_num_threads(before)


def _check_writable(path: Path) -> None:
    """Complain before minutes of work, not after."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: permission denied")


def _lines(facts: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A dictionary as aligned lines; what is nested is indented below its name."""
    plain = [len(str(name)) for name, value in facts.items() if not _is_nested(value)]
    width = max(plain, default=0)
    for name, value in facts.items():
        title = str(name) if indent else str(name).replace("_", " ")  # below the top they are names of kernels and packages
        if not _is_nested(value):
            yield f"{indent}{title:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}"
            continue
        yield f"{indent}{title}"
        yield from _lines(value if isinstance(value, dict) else dict(value), indent + "  ")


def _is_nested(value: Any) -> bool:
    """Whether a value is a dictionary or a list of (name, value) pairs."""
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, tuple) for item in value))


# -- arguments ----------------------------------------------------------------------------------------------------------


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+([x,]\d+)*", text):
        raise argparse.ArgumentTypeError(f"a shape is written 1x64x56x56 or 1,64,56,56, got {text!r}")
    return tuple(int(part) for part in re.split("[x,]", text))


def _per_axis(text: str) -> int | tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer or one per axis such as 2,1, got {text!r}") from None
    return values[0] if len(values) == 1 else values


def _padding(text: str) -> Any:
    if text.isidentifier():
        return text  # a name: the library knows which are valid
    try:
        values = tuple(tuple(map(int, part.split(":"))) if ":" in part else int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, one per axis (1,2), pairs (0:1,0:1) or a name such as same, "
                                         f"got {text!r}") from None
    return values[0] if len(values) == 1 and isinstance(values[0], int) else values


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a positive {'integer' if kind is int else 'number'}, got {text!r}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastconv", description="Fast convolutions for NumPy, on the processor or an NVIDIA GPU.")
    parser.add_argument("--version", action="version", version=f"fastconv {getattr(fc, '__version__', 'unknown')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, text, add_arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        add_arguments(command)
    return parser


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=SUITES, default="full", help="what to convolve (default: everything)")
    parser.add_argument("--backend", action="append", metavar="NAME", help="measure only this backend; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose backends (default: %(default)s)")
    parser.add_argument("--threads", type=_positive(int), metavar="N", help="threads for fastconv (default: all)")
    parser.add_argument("--layer", default="", metavar="NAME", help="only items whose name contains NAME")
    parser.add_argument("--seconds", type=_positive(float), default=measure.SUITE_SECONDS, metavar="S",
                        help="aim at this total time (default: %(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with a roofline picture")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input_shape", type=_shape, metavar="INPUT", help="shape of the input, such as 1x64x56x56")
    parser.add_argument("weight_shape", type=_shape, metavar="WEIGHT", help="shape of the weights, such as 128x64x3x3")
    _add_conv_options(parser)


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shapes", type=_shape, nargs="*", metavar="INPUT WEIGHT",
                        help="pairs of shapes, such as 1x64x56x56 64x64x3x3")
    parser.add_argument("--suite", choices=SUITES, help="tune the benchmark's items instead")
    parser.add_argument("--layer", default="", metavar="NAME", help="with --suite: only items whose name contains NAME")
    _add_conv_options(parser)


def _add_conv_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stride", type=_per_axis, metavar="S", help="2, or one per axis: 2,1")
    parser.add_argument("--padding", type=_padding, metavar="P",
                        help="1, one per axis (1,2), pairs (0:1,0:1), valid, same, same_lower or causal")
    parser.add_argument("--dilation", type=_per_axis, metavar="D")
    parser.add_argument("--groups", type=int, metavar="G")
    parser.add_argument("--padding-mode", choices=PADDING_MODES)
    parser.add_argument("--layout", metavar="NCHW|NHWC")
    parser.add_argument("--activation", metavar="NAME")
    parser.add_argument("--accuracy", choices=ACCURACIES)
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="float32 (default), float64, ...")


def _warmup_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated (default: float32)")
    parser.add_argument("--convolutions", action="store_true", help="only their kernels, not those of pooling, layers and the like")


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` takes none."""


def _filter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="IN", help="a .npy file, or PNG, JPEG, ... where Pillow is installed")
    parser.add_argument("output", type=Path, metavar="OUT", help="its extension chooses the format")
    parser.add_argument("--kernel", required=True, metavar="NAME|FILE.npy", help=f"{', '.join(imaging.FILTERS)} or a .npy file")
    parser.add_argument("--size", type=_positive(int), metavar="N", help="of gaussian, box and motion, in pixels")
    parser.add_argument("--sigma", type=_positive(float), metavar="S", help="of gaussian, in pixels")
    parser.add_argument("--angle", type=float, metavar="A", help="of motion, in degrees from the horizontal")
    parser.add_argument("--mode", choices=PADDING_MODES, default="reflect", help="the border (default: reflect)")
    parser.add_argument("--absolute", action="store_true", help="absolute value of the result: edges of both signs")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=_positive(int), default=40, metavar="N", help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=_positive(int), default=32, metavar="N", help="images a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=_positive(float), default=0.006, metavar="R", help="the highest (default: %(default)s)")
    parser.add_argument("--held-out", type=_positive(float), default=0.2, metavar="S", help="share of the images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split, the weights and the order (default: 0)")
    parser.add_argument("--threads", type=_positive(int), metavar="N", help="threads (default: all)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE.npz", help="write the state after each epoch, and go on from it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write confusion matrix and learned filters as a page")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write them as a picture (needs Pillow)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the model as .npz or .safetensors")


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]]] = {
    "bench": (_bench, "Convolve real layers, a photograph and a sound with every backend, and compare.", _bench_arguments),
    "explain": (_explain, "Tell which backend a convolution uses, and why.", _explain_arguments),
    "tune": (_tune, "Time the backends on some shapes and remember the fastest.", _tune_arguments),
    "warmup": (_warmup, "Compile all kernels ahead of their first use.", _warmup_arguments),
    "info": (_info, "Show versions, machine, threads, cache and kernels.", _info_arguments),
    "filter": (_filter, "Filter an image file.", _filter_arguments),
    "train": (_train, "Train a small CNN on handwritten digits, and show what it learned.", _train_arguments),
}
