"""One self-contained HTML page of a training run: figures, curves, confusion matrix, learned filters, mistakes. No network, no script."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from fastconv.bench.page import element
from fastconv.train.digits import Outcome

__all__ = ["render", "write_html"]

CELL = 46
POSITIVE, NEGATIVE = "var(--c0)", "var(--c1)"


def write_html(outcome: Outcome, path: str | Path) -> None:
    """Write the page to a file."""
    Path(path).write_text(render(outcome), encoding="utf-8")


def render(outcome: Outcome) -> str:
    """The page as text; it is well-formed XML too."""
    style = (resources.files("fastconv.bench") / "data" / "page.css").read_text(encoding="utf-8")
    head = element("head", '<meta charset="utf-8" />', '<meta name="viewport" content="width=device-width, initial-scale=1" />',
                   element("title", "fastconv train"), element("style", style))
    parts = (_header, _tiles, _confusion, _filters, _mistakes, _curves)
    body = element("main", *(part(outcome) for part in parts))
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _card(title: str, note: str, *content: str) -> str:
    return element("section", element("h2", escape(title)), element("p", escape(note), class_="note"), *content, class_="card")


def _svg(width: float, height: float, label: str, *content: str) -> str:
    return element("svg", *content, viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}", height=f"{height:g}", role="img",
                   aria_label=label, style="max-width: 100%")


def _header(outcome: Outcome) -> str:
    text = f"A small CNN on handwritten digits: {outcome.trained} images of 8 x 8 pixels to learn from, {len(outcome.labels)} held out"
    return element("h1", "fastconv train") + element("div", escape(text), class_="facts")


def _tiles(outcome: Outcome) -> str:
    parameters = sum(parameter.params[parameter.key].size for parameter in outcome.model.named_parameters())
    tiles = [(f"{outcome.accuracy:.2%}", f"right: {outcome.right} of {len(outcome.labels)} held-out images"),
             (f"{outcome.seconds_training:.1f} s", f"of training, {len(outcome.history)} epochs"),
             (f"{outcome.seconds_compiling:.1f} s", "of compiling, or of loading compiled kernels"),
             (f"{parameters:,}", "parameters")]
    return element("div", *(element("div", element("b", escape(value)), element("span", escape(label)), class_="tile")
                            for value, label in tiles), class_="tiles")


def _confusion(outcome: Outcome) -> str:
    confusion = outcome.confusion
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    parts = []
    for i in range(10):
        middle = CELL * (i + 1.5)
        parts.append(element("text", str(i), x=middle, y=CELL * 0.65, text_anchor="middle", class_="tick"))
        parts.append(element("text", str(i), x=CELL * 0.65, y=middle + 5, text_anchor="middle", class_="tick"))
        for j, count in enumerate(confusion[i]):
            x, y = CELL * (j + 1), CELL * (i + 1)
            shade = float(count / totals[i, 0])
            colour = POSITIVE if i == j else NEGATIVE
            # A single mistake must be seen: its share of the row would be too faint.
            opacity = 0.15 + 0.6 * shade if count else 0.0
            title = element("title", f"{i} taken for {j}: {count}")
            parts.append(element("rect", title, x=x + 1, y=y + 1, width=CELL - 2, height=CELL - 2, rx=5, fill=colour,
                                 fill_opacity=round(opacity, 3), stroke="var(--line)"))
            if count:
                parts.append(element("text", str(count), x=x + CELL / 2, y=y + CELL / 2 + 5, text_anchor="middle"))
    note = "Row: the digit; column: what the model took it for. Blue is right, orange wrong."
    return _card("Confusion matrix", note, _svg(CELL * 11, CELL * 11, "Confusion matrix", *parts))


def _filters(outcome: Outcome) -> str:
    filters = outcome.filters
    largest = float(np.abs(filters).max()) or 1.0
    height, width = filters.shape[1:]
    side, gap = 20, 14
    columns = 8
    parts = []
    for index, kernel in enumerate(filters):
        row, column = divmod(index, columns)
        left, top = column * (width * side + gap), row * (height * side + gap)
        for (i, j), weight in np.ndenumerate(kernel):
            parts.append(element("rect", element("title", f"{weight:.3f}"), x=left + j * side, y=top + i * side, width=side, height=side,
                                 fill=POSITIVE if weight > 0 else NEGATIVE, fill_opacity=round(abs(float(weight)) / largest, 3)))
        parts.append(element("rect", x=left, y=top, width=width * side, height=height * side, fill="none", stroke="var(--line)"))
    rows = -(-len(filters) // columns)
    picture = _svg(columns * (width * side + gap), rows * (height * side + gap), "Learned filters", *parts)
    return _card("Learned filters", "The kernels of the first convolution. Blue weights are positive, orange ones negative.", picture)


def _mistakes(outcome: Outcome) -> str:
    wrong = np.flatnonzero(outcome.labels != outcome.predicted)
    if not len(wrong):
        return _card("Mistakes", "None.")
    figures = []
    for index in wrong:
        image = outcome.images[index, 0]
        pixels = (element("rect", x=j, y=i, width=1.02, height=1.02, fill="var(--text)", fill_opacity=round(float(value), 3))
                  for (i, j), value in np.ndenumerate(image) if value)
        picture = element("svg", *pixels, viewBox=f"0 0 {image.shape[1]} {image.shape[0]}", width="96", height="96", role="img",
                          aria_label=f"a {outcome.labels[index]}")
        caption = element("div", f"{outcome.labels[index]}, taken for {outcome.predicted[index]}", class_="note")
        figures.append(element("div", picture, caption, style="display: inline-block; margin: 0 24px 8px 0"))
    return _card("Mistakes", "Held-out images that the model took for another digit.", *figures)


def _curves(outcome: Outcome) -> str:
    history = outcome.history
    if len(history) < 2:
        return ""
    width, height, left, bottom = 900.0, 260.0, 60.0, 30.0
    curves = {"training loss": (history.loss, "var(--c0)"), "loss on held-out images": (history.val_loss, "var(--c1)")}
    highest = max(max(values) for values, _ in curves.values() if values) or 1.0

    def place(epoch: int, value: float) -> str:
        return f"{left + epoch / (len(history) - 1) * (width - left - 10):.1f},{10 + (1 - value / highest) * (height - bottom - 10):.1f}"

    parts = [element("line", x1=left, x2=width - 10, y1=height - bottom, y2=height - bottom, class_="grid"),
             element("text", "0", x=left - 8, y=height - bottom + 4, text_anchor="end", class_="tick"),
             element("text", f"{highest:.2f}", x=left - 8, y=16, text_anchor="end", class_="tick"),
             element("text", "epoch 1", x=left, y=height - 8, class_="tick"),
             element("text", str(len(history)), x=width - 10, y=height - 8, text_anchor="end", class_="tick")]
    parts += [element("polyline", points=" ".join(place(i, value) for i, value in enumerate(values)), fill="none", stroke=colour,
                      stroke_width=2) for values, colour in curves.values()]
    legend = element("ul", *(element("li", element("i", style=f"background: {colour}"), name) for name, (_, colour) in curves.items()),
                     class_="legend")
    return _card("Loss", "Softmax cross-entropy with smoothed labels, by epoch.", legend, _svg(width, height, "Loss by epoch", *parts))
