"""Cuts the prediction of an image into regions of one class each, which COCO's formats list."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxseg.inference.segments import Segments


class Region(NamedTuple):
    """A region of one class.

    Attributes:
      mask: its pixels, at least one.
      category: the index of its class.
      confidence: how sure the model is, in 0..1.
    """

    mask: Bool[np.ndarray, "h w"]
    category: int
    confidence: float

    @property
    def area(self) -> int:
        """The number of its pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> list[int]:
        """The smallest box around it in pixels: left, top, width and height."""
        rows, columns = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def of_class_map(
    classes: UInt8[np.ndarray, "h w"], probabilities: Float[np.ndarray, "h w k"] | None
) -> Iterator[Region]:
    """Yields one region for each class that occurs, in ascending order.

    Args:
      classes: the class of every pixel.
      probabilities: the class probabilities of every pixel. A region's confidence is the mean of
        those of its class. Without them, it is 1.
    """
    for category in np.unique(classes).tolist():
        mask = classes == category
        confidence = 1.0
        if probabilities is not None:
            confidence = float(np.mean(probabilities[..., category], where=mask, dtype=np.float64))
        yield Region(mask, category, confidence)


def of_segments(segments: Segments) -> Iterator[Region]:
    """Yields the segments of Mask2Former, the most confident first."""
    for mask, category, confidence in zip(*segments, strict=True):
        yield Region(mask, int(category), float(confidence))
