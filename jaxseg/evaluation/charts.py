"""Charts of an evaluation: which classes are taken for which, and how good each class is.

Both are RGB uint8 [h, w, 3], as large as the number of classes asks for.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "h w 3"]

PAPER, INK, FAINT = (255, 255, 255), (45, 45, 45), (225, 225, 225)
FULL = (31, 78, 140)  # the color of a share of 1
OTHER = "no class"  # values outside the classes
GAP = 6


def confusion_chart(confusion: Int[np.ndarray, "rows columns"], classes: Sequence[str]) -> Picture:
    """A square for every pair (label, prediction): its share of the label's pixels.

    A row is a class as labeled, and adds up to one; rows without pixels are gray. Squares large
    enough say the share in per cent. `confusion` is `Scores.confusion`, whose last row and column
    are values outside the classes; they are shown where there are any.
    """
    counts = np.asarray(confusion, np.float64)
    outside = counts[-1].any() or counts[:, -1].any()
    names = [*classes, OTHER] if outside else list(classes)
    counts = counts[: len(names), : len(names)]
    labeled = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, labeled, out=np.zeros_like(counts), where=labeled > 0)

    cell = int(np.clip(1400 // len(names), 10, 36))
    font = ImageFont.load_default(min(cell - 2, 16))
    small = ImageFont.load_default(10)
    head = _text_width(names, font) + 2 * GAP
    side = head + cell * len(names) + GAP
    chart = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(chart)
    for row, name in enumerate(names):
        y = head + row * cell
        draw.text((head - GAP, y + cell / 2), name, INK, font, anchor="rm")
        for column, share in enumerate(shares[row]):
            x = head + column * cell
            color = _blend(share) if labeled[row] else FAINT
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=color)
            if cell >= 24 and share >= 0.005:
                ink = PAPER if share > 0.3 else INK
                draw.text((x + cell / 2, y + cell / 2), f"{share:.0%}"[:-1], ink, small, "mm")
    chart.paste(_columns_head(names, head, cell, font), (head, 0))
    draw.text((head - GAP, head - GAP), "label \\ prediction", INK, small, anchor="rs")
    return np.asarray(chart)


def class_bars(
    values: Float[np.ndarray, "k"], classes: Sequence[str], title: str = "IoU"
) -> Picture:
    """A bar from 0 to 1 for every class, in per cent beside it; "absent" where it is undefined."""
    line, length = 22, 500
    font = ImageFont.load_default(15)
    head = _text_width([*classes, title], font) + 2 * GAP
    room = _text_width(["100.00", "absent"], font) + 2 * GAP
    chart = Image.new("RGB", (head + length + room, line * (len(classes) + 1) + GAP), PAPER)
    draw = ImageDraw.Draw(chart)
    draw.text((head - GAP, line / 2), title, INK, font, anchor="rm")
    for row, (name, value) in enumerate(zip(classes, values, strict=True), start=1):
        middle, defined = row * line + line / 2, np.isfinite(value)
        end = head + (length * float(value) if defined else 0)
        draw.text((head - GAP, middle), name, INK, font, anchor="rm")
        draw.rectangle((head, middle - 8, head + length, middle + 8), fill=FAINT)
        draw.rectangle((head, middle - 8, end, middle + 8), fill=FULL if defined else FAINT)
        text = f"{100 * value:.2f}" if defined else "absent"
        draw.text((head + length + GAP, middle), text, INK, font, anchor="lm")
    return np.asarray(chart)


def _columns_head(names, height, cell, font):
    """The names of the columns, written upwards."""
    strip = Image.new("RGB", (height, cell * len(names)), PAPER)
    draw = ImageDraw.Draw(strip)
    for column, name in enumerate(names):
        draw.text((GAP, (column + 0.5) * cell), name, INK, font, anchor="lm")
    return strip.transpose(Image.Transpose.ROTATE_90)


def _blend(share):
    """From paper to `FULL`; the root lets small confusions be seen."""
    weight = float(share) ** 0.5
    return tuple(round((1 - weight) * p + weight * f) for p, f in zip(PAPER, FULL, strict=True))


def _text_width(texts, font):
    return max(int(np.ceil(font.getlength(text))) for text in texts)
