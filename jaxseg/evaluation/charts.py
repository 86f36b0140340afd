"""Draws charts of an evaluation: the confusion matrix, one bar per class, and the calibration.

All are RGB uint8 [h, w, 3]. The size of the first two grows with the number of classes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw

from jaxseg.evaluation.calibration import expected_calibration_error
from jaxseg.reporting.fonts import load_font
from jaxseg.reporting.visualize import drawn_names

Picture = UInt8[np.ndarray, "h w 3"]

PAPER, INK, FAINT = (255, 255, 255), (45, 45, 45), (225, 225, 225)
FULL = (31, 78, 140)  # the color of a share of 1
WARN = (200, 60, 40)
OTHER = "no class"  # values outside the classes
GAP = 6


def confusion_chart(
    confusion: Integer[np.ndarray, "rows columns"], classes: Sequence[str]
) -> Picture:
    """Draws the confusion matrix, with one square for every pair (label, prediction).

    The color of a square is its share of the label's pixels. A row is a class of the labels and
    adds up to one. Rows without pixels are gray. Squares that are large enough also show the share
    in percent.

    Args:
      confusion: `Scores.confusion`, int64 [C + 1, C + 1]. Its last row and column count values
        outside the classes. They are shown only if they count any pixel.
      classes: names of the C classes.
    """
    counts = np.asarray(confusion, np.float64)
    outside = counts[-1].any() or counts[:, -1].any()
    names = drawn_names(classes) + [OTHER] * bool(outside)
    counts = counts[: len(names), : len(names)]
    labeled = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, labeled, out=np.zeros_like(counts), where=labeled > 0)

    cell = int(np.clip(1400 // len(names), 10, 36))
    size, small = min(cell - 2, 16), load_font(10)
    head = _text_width(names, size) + 2 * GAP
    side = head + cell * len(names) + GAP
    chart = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(chart)
    for row, name in enumerate(names):
        y = head + row * cell
        draw.text((head - GAP, y + cell / 2), name, INK, load_font(size, name), anchor="rm")
        for column, share in enumerate(shares[row]):
            x = head + column * cell
            color = _blend(share) if labeled[row] else FAINT
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=color)
            if cell >= 24 and share >= 0.005:
                ink = PAPER if share > 0.3 else INK
                draw.text((x + cell / 2, y + cell / 2), f"{share:.0%}"[:-1], ink, small, "mm")
    chart.paste(_columns_head(names, head, cell, size), (head, 0))
    draw.text((head - GAP, head - GAP), "label \\ prediction", INK, small, anchor="rs")
    return np.asarray(chart)


def class_bars(
    values: Float[np.ndarray, " k"], classes: Sequence[str], title: str = "IoU"
) -> Picture:
    """Draws one horizontal bar from 0 to 1 per class, with the value in percent next to it.

    Args:
      values: one value per class, in 0..1. Values that are not finite are labeled "absent".
      classes: names of the classes.
      title: what the values are.
    """
    line, length, size = 22, 500, 15
    names, font = drawn_names(classes), load_font(size)
    head = _text_width([*names, title], size) + 2 * GAP
    room = _text_width(["100.00", "absent"], size) + 2 * GAP
    chart = Image.new("RGB", (head + length + room, line * (len(classes) + 1) + GAP), PAPER)
    draw = ImageDraw.Draw(chart)
    draw.text((head - GAP, line / 2), title, INK, font, anchor="rm")
    for row, (name, value) in enumerate(zip(names, values, strict=True), start=1):
        middle, defined = row * line + line / 2, np.isfinite(value)
        end = head + (length * float(value) if defined else 0)
        draw.text((head - GAP, middle), name, INK, load_font(size, name), anchor="rm")
        draw.rectangle((head, middle - 8, head + length, middle + 8), fill=FAINT)
        draw.rectangle((head, middle - 8, end, middle + 8), fill=FULL if defined else FAINT)
        text = f"{100 * value:.2f}" if defined else "absent"
        draw.text((head + length + GAP, middle), text, INK, font, anchor="lm")
    return np.asarray(chart)


def reliability_diagram(counts: Float[np.ndarray, "3 bins"]) -> Picture:
    """Draws how often pixels are correct, by the probability of their predicted class.

    A bar for each bin shows its accuracy, and a red line the mean probability of its pixels. Where
    both are equal, the model is calibrated; where the bar ends below the line, it is too sure. The
    bars below show the bin's share of the pixels.

    Args:
      counts: `Scores.calibration`.
    """
    pixels, probability, correct = counts
    bins, side, small, font = counts.shape[1], 480, 90, load_font(13)
    left, top = 60, 30
    chart = Image.new("RGB", (left + side + 20, top + side + small + 60), PAPER)
    draw = ImageDraw.Draw(chart)
    width = side / bins
    for k in range(bins):
        x = left + k * width
        share = pixels[k] / max(pixels.sum(), 1)
        bottom = top + side + GAP + small
        draw.rectangle((x + 1, bottom - small, x + width - 1, bottom), FAINT)
        draw.rectangle((x + 1, bottom - small * share, x + width - 1, bottom), INK)
        if pixels[k]:
            accuracy, mean = correct[k] / pixels[k], probability[k] / pixels[k]
            draw.rectangle((x + 1, top + side * (1 - accuracy), x + width - 1, top + side), FULL)
            y = top + side * (1 - mean)
            draw.line((x + 1, y, x + width - 1, y), WARN, 3)
    draw.rectangle((left, top, left + side, top + side), outline=INK)
    draw.line((left, top + side, left + side, top), INK)
    for tick in (0.0, 0.5, 1.0):
        place = left + side * tick
        draw.text((place, top + side + small + 16), f"{tick:g}", INK, font, anchor="mt")
        draw.text((left - GAP, top + side * (1 - tick)), f"{tick:g}", INK, font, anchor="rm")
    error = expected_calibration_error(counts)
    title = f"accuracy (bars), mean probability (red) · ECE {100 * error:.2f} %"
    draw.text((left, top - GAP), title, INK, font, anchor="ls")
    label = "probability of the predicted class; below: share of the pixels"
    draw.text((left, top + side + small + 36), label, INK, font, anchor="lt")
    return np.asarray(chart)


def _columns_head(names, height, cell, size):
    """Draws the names of the columns, reading upwards."""
    strip = Image.new("RGB", (height, cell * len(names)), PAPER)
    draw = ImageDraw.Draw(strip)
    for column, name in enumerate(names):
        place = (GAP, (column + 0.5) * cell)
        draw.text(place, name, INK, load_font(size, name), anchor="lm")
    return strip.transpose(Image.Transpose.ROTATE_90)


def _blend(share):
    """Blends from `PAPER` to `FULL`. The square root makes small confusions visible."""
    weight = float(share) ** 0.5
    return tuple(round((1 - weight) * p + weight * f) for p, f in zip(PAPER, FULL, strict=True))


def _text_width(texts, size):
    return max(int(np.ceil(load_font(size, text).getlength(text))) for text in texts)
