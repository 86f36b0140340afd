"""Draws a confusion matrix as SVG, and lists the largest confusions."""

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from jaxseg.report.markup import element

OTHER = "no class"  # values outside the classes
SMALLEST = 0.0005  # share of the label's pixels below which a square is left empty
NUMBERED = 24  # side of a square in pixels from which its share is written in it


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Pixels of one class that were predicted as another.

    Attributes:
      label: the class of the labels.
      prediction: the class that was predicted.
      share: their share of the label's pixels.
      pixels: how many they are.
    """

    label: str
    prediction: str
    share: float
    pixels: int


def normalized(
    confusion: Integer[np.ndarray, "rows columns"], classes: Sequence[str]
) -> tuple[Float[np.ndarray, "k k"], list[str]]:
    """Returns the share of each prediction among the pixels of a label, and the names of the rows.

    Values outside the classes are a row and a column of their own, if there are any.
    """
    counts = np.asarray(confusion, np.float64)
    outside = bool(counts[-1].any() or counts[:, -1].any())
    names = [*classes, OTHER] if outside else list(classes)
    counts = counts[: len(names), : len(names)]
    labeled = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, labeled, out=np.zeros_like(counts), where=labeled > 0), names


def largest_confusions(
    confusion: Integer[np.ndarray, "rows columns"], classes: Sequence[str], count: int
) -> list[Confusion]:
    """Returns the pairs of different classes with the most pixels, the largest first."""
    shares, names = normalized(confusion, classes)
    pixels = np.array(confusion[: len(names), : len(names)], np.int64)
    np.fill_diagonal(pixels, 0)
    order = np.argsort(-pixels, axis=None, kind="stable")[:count]
    places = (divmod(int(place), len(names)) for place in order)
    return [
        Confusion(names[row], names[column], float(shares[row, column]), int(pixels[row, column]))
        for row, column in places
        if pixels[row, column]
    ]


def confusion_matrix_chart(
    confusion: Integer[np.ndarray, "rows columns"], classes: Sequence[str]
) -> ET.Element:
    """Draws one square for every pair (label, prediction) that occurs.

    Its opacity is the root of its share of the label's pixels, so that small confusions are
    visible.

    Args:
      confusion: the confusion matrix, [C + 1, C + 1]; its last row and column count values outside
        the classes.
      classes: the names of the C classes.
    """
    shares, names = normalized(confusion, classes)
    cell = int(np.clip(560 // max(len(names), 1), 9, 27))
    font = min(cell - 1, 12)
    head = 14 + 0.58 * font * max(map(len, names), default=0)
    side = head + cell * len(names) + 4
    parts: list[ET.Element] = []
    for index, name in enumerate(names):
        at = round(head + (index + 0.5) * cell, 1)
        y = at + 0.35 * font
        parts.append(element("text", name, x=head - 5, y=y, text_anchor="end", font_size=font))
        upward = f"translate({y:.1f} {head - 5:.1f}) rotate(-90)"
        parts.append(element("text", name, transform=upward, font_size=font))
    rows, columns = np.nonzero(shares >= SMALLEST)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        share = float(shares[row, column])
        x, y = (round(head + place * cell, 1) for place in (column, row))
        tip = element("title", f"{names[row]} as {names[column]}: {share:.2%}")
        opacity = round(share**0.5, 3)
        size = {"width": cell - 1, "height": cell - 1}
        parts.append(element("rect", tip, x=x, y=y, fill_opacity=opacity, **size))
        if cell >= NUMBERED and share >= 0.005:
            middle = {"x": x + (cell - 1) / 2, "y": y + cell / 2 + 3, "text_anchor": "middle"}
            strong = "strong" if share > 0.4 else None
            parts.append(
                element("text", f"{100 * share:.0f}", font_size=10, class_=strong, **middle)
            )
    frame = {"x": head - 1, "y": head - 1, "width": cell * len(names) + 1}
    parts.append(element("rect", class_="frame", height=cell * len(names) + 1, **frame))
    return element(
        "svg",
        parts,
        viewBox=f"0 0 {side:.0f} {side:.0f}",
        width=round(side),
        height=round(side),
        role="img",
        aria_label="confusion matrix: rows are labels, columns are predictions",
    )
