"""A training run as a PNG: the confusion matrix, the learned filters, the mistakes. Pillow draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastconv.imaging import MissingPillowError
from fastconv.train.digits import Outcome

__all__ = ["check_pillow", "render", "write_png"]

Colour = tuple[int, int, int]
CELL, MARGIN, GAP, WEIGHT = 46, 28, 12, 18
WHITE, TEXT, MUTED, LINE = (255, 255, 255), (28, 28, 26), (99, 98, 93), (226, 225, 220)
POSITIVE, NEGATIVE = (42, 120, 214), (226, 104, 43)
COLUMNS = 8  # of filters and of mistakes


def write_png(outcome: Outcome, path: str | Path) -> None:
    """Write the picture to a file."""
    render(outcome).save(path)


def render(outcome: Outcome) -> Any:
    """The picture as Pillow's."""
    image_module, draw_module, _ = check_pillow()
    filters = outcome.filters
    wrong = np.flatnonzero(outcome.labels != outcome.predicted)[:COLUMNS]
    kernel_width, kernel_height = (n * WEIGHT + GAP for n in filters.shape[:0:-1])
    rows = -(-len(filters) // COLUMNS)
    right = MARGIN * 2 + CELL * 11
    width = right + max(COLUMNS * kernel_width, 420) + MARGIN
    height = max(80 + CELL * 11, 110 + rows * kernel_height + (130 if len(wrong) else 0)) + MARGIN
    image = image_module.new("RGB", (width, height), WHITE)
    draw = draw_module.Draw(image)
    title = f"{outcome.accuracy:.2%} of {len(outcome.labels)} held-out digits right, {outcome.seconds_training:.1f} s of training"
    draw.text((MARGIN, MARGIN - 8), title, fill=TEXT, font=_font(20))
    _draw_confusion(draw, outcome.confusion, MARGIN, 64)
    _draw_filters(draw, filters, right, 64)
    if len(wrong):
        _draw_mistakes(draw, outcome, wrong, right, 64 + 30 + rows * kernel_height + 10)
    return image


def check_pillow() -> tuple[Any, Any, Any]:
    """Pillow's modules, or an error that says how to get them."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingPillowError("writing PNG needs Pillow: pip install pillow") from None
    return Image, ImageDraw, ImageFont


def _font(size: int) -> Any:
    font_module = check_pillow()[2]
    try:
        return font_module.load_default(size)
    except TypeError:  # Pillow before 10.1 has its font in one size
        return font_module.load_default()


def _mixed(colour: Colour, share: float) -> Colour:
    """A colour on white."""
    red, green, blue = (round(255 + (channel - 255) * min(max(share, 0.0), 1.0)) for channel in colour)
    return red, green, blue


def _centred(draw: Any, x: float, y: float, text: str, colour: Colour, size: int) -> None:
    font = _font(size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    draw.text((x - (left + right) / 2, y - (top + bottom) / 2), text, fill=colour, font=font)


def _draw_confusion(draw: Any, confusion: np.ndarray, left: int, top: int) -> None:
    draw.text((left, top), "confusion matrix (row: the digit, column: taken for)", fill=MUTED, font=_font(14))
    totals = np.maximum(confusion.sum(axis=1), 1)
    top += 12
    for i in range(10):
        middle = CELL * (i + 1.5)
        _centred(draw, left + middle, top + CELL * 0.65, str(i), MUTED, 15)
        _centred(draw, left + CELL * 0.65, top + middle, str(i), MUTED, 15)
        for j, count in enumerate(confusion[i]):
            x, y = left + CELL * (j + 1), top + CELL * (i + 1)
            share = 0.15 + 0.6 * count / totals[i] if count else 0.0
            draw.rectangle((x + 1, y + 1, x + CELL - 1, y + CELL - 1), fill=_mixed(POSITIVE if i == j else NEGATIVE, share), outline=LINE)
            if count:
                _centred(draw, x + CELL / 2, y + CELL / 2, str(count), TEXT, 16)


def _draw_filters(draw: Any, filters: np.ndarray, left: int, top: int) -> None:
    draw.text((left, top), "filters of the first convolution (blue: positive, orange: negative)", fill=MUTED, font=_font(14))
    top += 30
    largest = float(np.abs(filters).max()) or 1.0
    kernel_height, kernel_width = filters.shape[1:]
    for index, kernel in enumerate(filters):
        row, column = divmod(index, COLUMNS)
        x, y = left + column * (kernel_width * WEIGHT + GAP), top + row * (kernel_height * WEIGHT + GAP)
        for (i, j), weight in np.ndenumerate(kernel):
            colour = _mixed(POSITIVE if weight > 0 else NEGATIVE, abs(float(weight)) / largest)
            draw.rectangle((x + j * WEIGHT, y + i * WEIGHT, x + (j + 1) * WEIGHT, y + (i + 1) * WEIGHT), fill=colour)
        draw.rectangle((x, y, x + kernel_width * WEIGHT, y + kernel_height * WEIGHT), outline=LINE)


def _draw_mistakes(draw: Any, outcome: Outcome, wrong: np.ndarray, left: int, top: int) -> None:
    draw.text((left, top), "mistakes (the digit, what it was taken for)", fill=MUTED, font=_font(14))
    top += 26
    pixel = 7
    first = left
    for place, index in enumerate(wrong):
        x = first + place * (3 * WEIGHT + GAP)
        for (i, j), value in np.ndenumerate(outcome.images[index, 0]):
            left, above = x + j * pixel, top + i * pixel
            draw.rectangle((left, above, left + pixel - 1, above + pixel - 1), fill=_mixed(TEXT, float(value)))
        draw.rectangle((x, top, x + 8 * pixel, top + 8 * pixel), outline=LINE)
        _centred(draw, x + 4 * pixel, top + 8 * pixel + 14, f"{outcome.labels[index]}, {outcome.predicted[index]}", TEXT, 14)
