"""The result of a run for people and programs: a table in the terminal and a JSON file."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastconv.bench.measure import SKIPPED, Report, Result, geometric_mean
from fastconv.bench.suite import NETWORKS, Item

__all__ = ["as_dict", "print_report", "progress", "summary", "write_json"]

PLAIN_WIDTH = 160  # of a table that goes into a file, where there is no terminal to ask


# -- progress -----------------------------------------------------------------------------------------------------------


@contextmanager
def progress(total: int) -> Iterator[Callable[[Item], None]]:
    """Yield a function to call with each item before it is measured: a rich bar in a terminal, else counted lines."""
    if not sys.stderr.isatty() or not _has_rich():
        yield _counter(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("", total=total)
        started = 0

        def advance(item: Item) -> None:
            nonlocal started
            bar.update(task, completed=started, description=f"{item.suite} {item.name}")
            started += 1

        yield advance


def _counter(total: int) -> Callable[[Item], None]:
    done = 0

    def advance(item: Item) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{total}] {item.suite} {item.name}", file=sys.stderr, flush=True)

    return advance


def _has_rich() -> bool:
    try:
        import rich  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True


# -- table --------------------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    """Milliseconds with three significant digits."""
    value = seconds * 1e3
    return f"{value:.{max(0, min(4, 2 - math.floor(math.log10(value))))}f}" if value > 0 else f"{value:.3f}"


def cells(result: Result, backends: list[str]) -> list[str]:
    """The texts of a row: item, shape, a time per backend, NumPy's time, choice, rate, share of peak, speed-up."""
    times = [_time_cell(result, name) for name in backends]
    known = bool(result.timings)
    rates = [f"{result.rate / 1e9:.1f}", f"{result.share:.0%}", f"{result.speedup:.1f}x"] if known else ["-"] * 3
    numpy = milliseconds(result.baseline.seconds)
    return [f"{result.item.suite} {result.item.name}", result.item.shape, *times, numpy, result.chosen, *rates]


def _time_cell(result: Result, name: str) -> str:
    if name in result.failures:
        return "FAILED"
    if name not in result.timings:
        return "-"
    return milliseconds(result.timings[name].seconds) + (" WRONG" if name in result.wrong else "")


def headings(backends: list[str]) -> list[str]:
    """The texts above the columns of `cells`."""
    return ["item", "input * weights", *backends, "NumPy", "choice", "GFLOP/s", "of peak", "speed-up"]


def print_report(report: Report) -> None:
    """Print the table, what was found wrong, and the summary."""
    print("median milliseconds of every backend that accepts the item, and of NumPy or SciPy doing the same")
    if _has_rich():
        _print_rich(report)
    else:
        _print_plain(report)
    for line in (*problems(report), "", *summary(report)):
        print(line)


def _print_rich(report: Report) -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    endless = Console(width=10_000)  # measures what a table would like, where the terminal's own would cut it short
    table = _rich_table(report, narrow=False)
    if endless.measure(table).maximum > console.width:
        table = _rich_table(report, narrow=True)
    # What is still too wide breaks at the terminal's edge: rich would cut off figures instead.
    console.width = max(console.width, endless.measure(table).maximum)
    with console.capture() as captured:
        console.print(table)
    print(captured.get(), end="")  # rich itself would end the process with status 1 where nobody reads the output


def _rich_table(report: Report, narrow: bool) -> Any:
    """The table for rich; a narrow one has the shapes below the names instead of beside them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for index, heading in enumerate(headings(report.backends)):
        if index != 1 or not narrow:
            table.add_column(heading, justify="left" if index < 2 or heading == "choice" else "right", no_wrap=True)
    for result in report.results:
        row = cells(result, report.backends)
        for index, name in enumerate(report.backends, start=2):
            if name in result.wrong:
                row[index] = f"[bold red]{row[index]}[/]"
            elif name == result.fastest:
                row[index] = f"[bold green]{row[index]}[/]"
        if narrow:
            row[:2] = [f"{row[0]}\n[dim]{row[1]}[/]"]
        table.add_row(*row)
    return table


def _print_plain(report: Report) -> None:
    rows = [headings(report.backends), *(cells(result, report.backends) for result in report.results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = (0, 1, len(widths) - 4)
    for row in rows:
        print("  ".join(text.ljust(width) if column in left else text.rjust(width)
                        for column, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip())


def problems(report: Report) -> list[str]:
    """A line for each backend that failed or gave another result than the others."""
    lines = []
    for result in report.results:
        where = f"{result.item.suite} {result.item.name}"
        lines += [f"FAILED {where}: {name}: {message}" for name, message in result.failures.items()]
        lines += [f"WRONG {where}: {name} differs by {result.timings[name].error:.1e} of the largest value"
                  for name in result.wrong if name in result.timings]
        if not result.verified and not result.wrong:
            lines.append(f"WRONG {where}: backends differ from each other by {result.spread:.1e} of the largest value")
    return lines


def summary(report: Report) -> list[str]:
    """The closing lines: geometric means, the dispatcher's record, whole networks, verification and total time."""
    measured = report.measured
    lines = []
    if measured:
        chosen = [result for result in measured if result.shown == result.chosen]
        worst = max(chosen, key=lambda result: result.regret, default=None)
        lines.append(f"geometric means over {len(measured)} items: {geometric_mean(r.speedup for r in measured):.1f}x the speed "
                     f"of NumPy/SciPy, {geometric_mean(r.rate for r in measured) / 1e9:.1f} GFLOP/s, "
                     f"{geometric_mean(r.share for r in measured):.0%} of the FMA peak of {report.peak / 1e9:.0f} GFLOP/s "
                     f"({report.threads} thread{'s' * (report.threads > 1)})")
        if worst:
            lines.append(f"the dispatcher's choice takes {geometric_mean(r.regret for r in chosen):.2f}x the time of the fastest "
                         f"backend (worst {worst.regret:.2f}x: {worst.item.suite} {worst.item.name})")
    lines += [f"{name}: {seconds * 1e3:.1f} ms for all convolutions of the network, NumPy {numpy * 1e3:.0f} ms"
              for name, (seconds, numpy) in network_seconds(report).items()]
    if skipped := sum(SKIPPED in result.refusals.values() for result in report.results):
        lines.append(f"on {skipped} items hopeless backends were skipped to end in time; --seconds gives them more")
    agree = sum(result.verified for result in report.results)
    lines.append(f"verified: results agree on {agree} of {len(report.results)} items; {report.seconds:.0f} s in total")
    return lines


def network_seconds(report: Report) -> dict[str, tuple[float, float]]:
    """Seconds of fastconv and of NumPy for all layers of every network that was measured whole, repeats counted."""
    found = Counter(result.item.suite for result in report.measured)
    whole = {name: sum(1 for _ in network()) for name, (network, _) in NETWORKS.items() if name in found}
    sums = {}
    for name, layers in whole.items():
        results = [result for result in report.measured if result.item.suite == name]
        if sum(result.item.count for result in results) == layers:
            sums[name] = (sum(r.seconds * r.item.count for r in results), sum(r.baseline.seconds * r.item.count for r in results))
    return sums


# -- JSON ---------------------------------------------------------------------------------------------------------------


def as_dict(report: Report) -> dict[str, Any]:
    """The report as plain dictionaries, lists, strings and numbers; seconds, FLOP/s and bytes throughout."""
    facts = {name: getattr(report, name) for name in ("date", "cpu", "threads", "versions", "backends", "peak", "bandwidth",
                                                      "cache_bandwidth", "seconds", "verified")}
    return {"format": 1, **facts, "summary": summary(report), "items": [_result_dict(result) for result in report.results]}


def _result_dict(result: Result) -> dict[str, Any]:
    item = result.item
    derived = {name: getattr(result, name) for name in ("flops", "bytes", "chosen", "fastest", "seconds", "rate", "share",
                                                        "speedup", "spread", "refusals", "failures", "verified")}
    facts = {name: getattr(item, name) for name in ("suite", "name", "count", "input_shape", "weight_shape", "options")}
    return {**facts, **derived, "timings": {name: asdict(timing) for name, timing in result.timings.items()},
            "baseline": {"name": item.baseline, "seconds": result.baseline.seconds, "calls": result.baseline.calls}}


def write_json(report: Report, path: str | Path) -> None:
    """Write the report as JSON; nan and infinity become null, which JSON has no numbers for."""
    Path(path).write_text(json.dumps(_finite(as_dict(report)), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
