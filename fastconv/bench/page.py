"""One self-contained HTML page of a run: a roofline picture, bars per layer and backend, and the table. No network, no script."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path

from fastconv.bench.measure import Report, Result, geometric_mean
from fastconv.bench.report import cells, headings, milliseconds, network_seconds, problems

__all__ = ["render", "write_html"]

COLOURS = 8  # --c0 to --c7 in page.css
TIMES = "\N{MULTIPLICATION SIGN}"
TITLES = {"resnet50": "ResNet-50", "vgg16": "VGG-16", "mobilenetv2": "MobileNetV2", "convnext": "ConvNeXt-T",
          "lenet": "LeNet-5, batch 64", "photo": "Filters of a photograph, 512 x 512",
          "audio": "Filters of a sound, 10 s at 44.1 kHz"}


def write_html(report: Report, path: str | Path) -> None:
    """Write the page to a file."""
    Path(path).write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The page as text; it is well-formed XML too."""
    style = (resources.files("fastconv.bench") / "data" / "page.css").read_text(encoding="utf-8")
    head = element("head", '<meta charset="utf-8" />', '<meta name="viewport" content="width=device-width, initial-scale=1" />',
                   element("title", "fastconv bench"), element("style", style))
    parts = (_header, _tiles, _problems, _roofline_card, _bars_card, _table_card)
    body = element("main", *(part(report) for part in parts))
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body), lang="en") + "\n"


# -- building blocks ----------------------------------------------------------------------------------------------------


def element(name: str, *children: str, **attributes: str | float) -> str:
    """An element of children that are markup already; `class_` and `stroke_width` become class and stroke-width."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{written}>{''.join(children)}</{name}>"


def _colour(report: Report, backend: str | None) -> str:
    return f"var(--c{report.backends.index(backend) % COLOURS})" if backend in report.backends else "var(--numpy)"


def _card(title: str, note: str, *content: str) -> str:
    return element("section", element("h2", escape(title)), element("p", escape(note), class_="note"), *content, class_="card")


def _header(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    facts = (f"{report.date} · {report.cpu} · {report.threads} thread{'s' * (report.threads > 1)} · "
             f"measured FMA peak {report.peak / 1e9:.0f} GFLOP/s")
    return element("h1", "fastconv bench") + "".join(element("div", escape(line), class_="facts") for line in (facts, versions))


def _tiles(report: Report) -> str:
    measured = report.measured
    chosen = [result for result in measured if result.shown == result.chosen]
    agree = sum(result.verified for result in report.results)
    tiles = [(f"{geometric_mean(r.speedup for r in measured):.1f}{TIMES}", "the speed of NumPy/SciPy (geometric mean)", ""),
             (f"{geometric_mean(r.share for r in measured):.0%}", "of the FMA peak (geometric mean)", ""),
             (f"{geometric_mean(r.regret for r in chosen):.2f}{TIMES}", "time of the chosen backend over the fastest", ""),
             (f"{agree} of {len(report.results)}", "items on which all results agree", "" if report.verified else " wrong"),
             (f"{report.seconds:.0f} s", "for the whole run, compilation included", "")]
    return element("div", *(element("div", element("b", escape(value)), element("span", escape(label)), class_="tile" + kind)
                            for value, label, kind in tiles), class_="tiles")


def _problems(report: Report) -> str:
    if not (lines := problems(report)):
        return ""
    entries = (element("div", escape(line), class_="wrong") for line in lines)
    return element("section", element("h2", "Problems"), *entries, class_="card")


def _legend(report: Report, numpy: bool) -> str:
    names = [(name, _colour(report, name)) for name in report.backends] + [("NumPy/SciPy", "var(--numpy)")] * numpy
    entries = (element("li", element("i", style=f"background: {colour}"), escape(name)) for name, colour in names)
    return element("ul", *entries, class_="legend")


# -- roofline -----------------------------------------------------------------------------------------------------------


class Axes:
    """Maps operations per byte and GFLOP/s, both logarithmic, to the picture's coordinates."""

    width, height = 1080.0, 520.0
    left, right, top, bottom = 76.0, 24.0, 24.0, 60.0

    def __init__(self, intensities: list[float], rates: list[float]) -> None:
        self.x_low, self.x_high = math.log10(min(intensities) / 1.5), math.log10(max(intensities) * 1.5)
        self.y_low, self.y_high = math.log10(min(rates) / 1.6), math.log10(max(rates) * 1.9)

    def x(self, intensity: float) -> float:
        """Horizontal position."""
        span = self.width - self.left - self.right
        return round(self.left + (math.log10(intensity) - self.x_low) / (self.x_high - self.x_low) * span, 1)

    def y(self, rate: float) -> float:
        """Vertical position."""
        span = self.height - self.top - self.bottom
        return round(self.height - self.bottom - (math.log10(rate) - self.y_low) / (self.y_high - self.y_low) * span, 1)


def _roofline_card(report: Report) -> str:
    measured = report.measured
    if not measured:
        return ""
    peak = report.peak / 1e9
    axes = Axes([*(r.intensity for r in measured), 1.0, 2 * report.peak / report.bandwidth],
                [*(r.rate / 1e9 for r in measured), peak])
    dots = (_dot(axes, report, result) for result in measured)
    picture = element("svg", _grid(axes), _roofs(axes, report), *dots, class_="roofline", role="img",
                      viewBox=f"0 0 {axes.width:.0f} {axes.height:.0f}", aria_label="Roofline: speed over operations per byte")
    note = ("Each mark is one item, run by the backend in its colour: the dispatcher's choice. Hover over it for its name. "
            "Operations are those of the direct sum, so methods that need fewer, such as FFT, can rise above the peak. "
            "Bandwidths are one thread's times the threads.")
    return _card("Roofline", note, _legend(report, numpy=False), _shapes_legend(), element("div", picture, class_="scroll"))


def _shapes_legend() -> str:
    entries = [("layer of a network", "resnet50"), ("photograph", "photo"), ("audio", "audio")]
    marks = ((element("svg", _mark(suite, 7, 7, fill="var(--muted)"), viewBox="0 0 14 14"), text) for text, suite in entries)
    return element("ul", *(element("li", *parts) for parts in marks), class_="legend")


def _grid(axes: Axes) -> str:
    parts = []
    for value, label in _ticks(axes.x_low, axes.x_high):
        x = axes.x(value)
        parts.append(element("line", x1=x, x2=x, y1=axes.top, y2=axes.height - axes.bottom, class_="grid"))
        parts.append(element("text", label, x=x, y=axes.height - axes.bottom + 20, text_anchor="middle", class_="tick"))
    for value, label in _ticks(axes.y_low, axes.y_high):
        y = axes.y(value)
        parts.append(element("line", x1=axes.left, x2=axes.width - axes.right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", label, x=axes.left - 10, y=y + 4, text_anchor="end", class_="tick"))
    middle = (axes.left + axes.width - axes.right) / 2
    centre = (axes.top + axes.height - axes.bottom) / 2
    title = "arithmetic intensity (FLOP per byte of input, weights and output)"
    parts.append(element("text", title, x=middle, y=axes.height - 14, text_anchor="middle"))
    parts.append(element("text", "speed (GFLOP/s)", transform=f"translate(20 {centre}) rotate(-90)", text_anchor="middle"))
    return element("g", *parts)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 times the powers of ten between two logarithms; powers of ten alone where that would be crowded."""
    steps = (1, 2, 5) if high - low < 3.5 else (1,)
    values = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [(value, f"{value:g}") for value in values if low <= math.log10(value) <= high]


def _roofs(axes: Axes, report: Report) -> str:
    peak = report.peak / 1e9
    right, bottom = 10**axes.x_high, 10**axes.y_low
    parts = [_line(axes, (report.peak / report.bandwidth, peak), (right, peak), "roof"),
             element("text", f"FMA peak {peak:.0f} GFLOP/s", x=axes.x(right) - 4, y=axes.y(peak) - 9, text_anchor="end")]
    for name, bandwidth, style in [("main memory", report.bandwidth, "roof"), ("cache", report.cache_bandwidth, "roof dashed")]:
        start = max(10**axes.x_low, bottom / (bandwidth / 1e9))
        ridge = report.peak / bandwidth
        if not start < ridge:
            continue
        parts.append(_line(axes, (start, start * bandwidth / 1e9), (ridge, peak), style))
        # The label runs along its line, above it, about a third of the way up.
        left, low = axes.x(start), axes.y(start * bandwidth / 1e9)
        width, height = axes.x(ridge) - left, axes.y(peak) - low
        angle = math.degrees(math.atan2(height, width))
        place = f"translate({left + 0.36 * width:.1f} {low + 0.36 * height:.1f}) rotate({angle:.1f})"
        parts.append(element("text", f"{name} {bandwidth / 1e9:.0f} GB/s", transform=place, dy=-8, text_anchor="middle"))
    return element("g", *parts)


def _line(axes: Axes, start: tuple[float, float], end: tuple[float, float], style: str) -> str:
    return element("line", x1=axes.x(start[0]), y1=axes.y(start[1]), x2=axes.x(end[0]), y2=axes.y(end[1]), class_=style)


def _dot(axes: Axes, report: Report, result: Result) -> str:
    tooltip = (f"{result.item.suite} {result.item.name}\n{result.item.shape}\n{result.shown}: {milliseconds(result.seconds)} ms, "
               f"{result.rate / 1e9:.1f} GFLOP/s, {result.share:.0%} of peak, {result.speedup:.1f}{TIMES} NumPy/SciPy")
    return _mark(result.item.suite, axes.x(result.intensity), axes.y(result.rate / 1e9), element("title", escape(tooltip)),
                 fill=_colour(report, result.shown), class_="dot")


def _mark(suite: str, x: float, y: float, *children: str, **attributes: str) -> str:
    """A circle for a layer, a square for the photograph, a triangle for the sound."""
    if suite == "photo":
        return element("rect", *children, x=x - 5, y=y - 5, width=10, height=10, rx=1.5, **attributes)
    if suite == "audio":
        return element("path", *children, d=f"M{x} {y - 6.5}L{x + 6.5} {y + 5}L{x - 6.5} {y + 5}Z", **attributes)
    return element("circle", *children, cx=x, cy=y, r=5.5, **attributes)


# -- bars and table -----------------------------------------------------------------------------------------------------


def _bars_card(report: Report) -> str:
    sections = []
    networks = network_seconds(report)
    for suite, results in groupby(report.results, key=lambda result: result.item.suite):
        title = TITLES[suite]
        if suite in networks:
            title += f" · all layers: {networks[suite][0] * 1e3:.1f} ms, NumPy {networks[suite][1] * 1e3:.0f} ms"
        bars = (_item_bars(report, result) for result in results)
        sections += [element("h3", escape(title)), element("div", *bars, class_="items")]
    note = ("Longer is faster: a bar's length is the speed relative to the fastest of its group, its figure the median time in "
            "milliseconds. The dispatcher's choice is in bold. Weights are packed once, as in a network that runs many inputs.")
    return _card("Time per layer and backend", note, _legend(report, numpy=True), *sections)


def _item_bars(report: Report, result: Result) -> str:
    bars = [(name, result.timings[name].seconds, _colour(report, name)) for name in report.backends if name in result.timings]
    bars.append(("SciPy" if result.item.baseline.startswith("scipy") else "NumPy", result.baseline.seconds, "var(--numpy)"))
    fastest = min(seconds for _, seconds, _ in bars)
    repeats = f", {result.item.count} times" if result.item.count > 1 else ""
    heading = element("header", element("b", escape(result.item.name)), element("span", escape(result.item.shape + repeats)))
    drawn = (_bar(name, seconds, fastest, colour, name == result.chosen) for name, seconds, colour in bars)
    return element("div", heading, *drawn, class_="item", title=f"compared with {result.item.baseline}")


def _bar(name: str, seconds: float, fastest: float, colour: str, chosen: bool) -> str:
    width = 100 * fastest / seconds if seconds else 100
    drawn = element("u", style=f"width: {width:.2f}%; background: {colour}")
    return element("div", element("span", escape(name)), element("div", drawn), element("em", f"{milliseconds(seconds)} ms"),
                   class_="bar chosen" if chosen else "bar")


def _table_card(report: Report) -> str:
    titles = headings(report.backends)
    text = (0, 1, len(titles) - 4)
    head = element("tr", *(_cell("th", escape(title), column in text) for column, title in enumerate(titles)))
    rows = (element("tr", *_table_cells(report, result, text)) for result in report.results)
    note = ("Medians in milliseconds; hover over a dash for the reason why a backend refuses. Speed-up is over NumPy or SciPy "
            "doing the same.")
    table = element("table", element("thead", head), element("tbody", *rows))
    return _card("All figures", note, element("div", table, class_="scroll"))


def _table_cells(report: Report, result: Result, text: tuple[int, ...]) -> Iterable[str]:
    for column, value in enumerate(cells(result, report.backends)):
        name = report.backends[column - 2] if 2 <= column < 2 + len(report.backends) else ""
        reason = result.refusals.get(name) or result.failures.get(name)
        content = element("span", escape(value), title=reason, class_="refused") if reason else escape(value)
        kind = "wrong" if name in result.wrong else "best" if name and name == result.fastest else ""
        yield _cell("td", content, column in text, kind)


def _cell(name: str, content: str, text: bool, kind: str = "") -> str:
    classes = " ".join(part for part in ("text" if text else "", kind) if part)
    return element(name, content, class_=classes) if classes else element(name, content)
