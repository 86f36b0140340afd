"""Windows over an image, and how their logits become the logits of the image.

All of it is linear and acts on rows and columns alone: the logits of a window are resized to the
window, averaged where windows overlap, cut, and resized to the image. So each side of an image has
one sparse matrix that does it all, and any part of an image can be had by itself.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from jaxseg.errors import ConfigError
from jaxseg.ops.resize import interpolation_taps


class SlidingWindow(NamedTuple):
    """Windows of `crop_hw` every `stride_hw`, in pixels of the network's input."""

    crop_hw: tuple[int, int]
    stride_hw: tuple[int, int]


def parse_sliding_window(settings: Mapping[str, Any]) -> SlidingWindow | None:
    """The windows of `config.eval`; None for an image in one piece.

    Raises:
      ConfigError: for another mode than these two, and for windows that cannot cover an image.
    """
    mode = settings["mode"]
    if mode not in ("whole", "slide"):
        raise ConfigError(f"config.eval.mode={mode}: 'whole' or 'slide'")
    if mode == "whole":
        return None
    slide = SlidingWindow(*(tuple(settings[key]) for key in SlidingWindow._fields))
    for key, sides in slide._asdict().items():
        if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
            raise ConfigError(f"config.eval.{key}={sides}: height and width, whole and above 0")
    if any(stride > crop for crop, stride in zip(*slide, strict=True)):
        raise ConfigError(
            f"config.eval.stride_hw={slide.stride_hw} leaves gaps between windows of"
            f" config.eval.crop_hw={slide.crop_hw}; neither side may be longer than the window's"
        )
    return slide


def window_starts(size: int, crop: int, stride: int) -> Int[np.ndarray, "n"]:
    """Where windows of length `crop` <= `size` begin: every `stride`, the last one moved inside."""
    count = (size - crop + stride - 1) // stride + 1
    return np.minimum(np.arange(count) * stride, size - crop)


class AxisPlan(NamedTuple):
    """One side of an image that goes through the network in windows.

    Attributes:
      starts: where they begin.
      logits_per_window: how many logits each window has along this axis.
      matrix: [out, len(starts) * logits_per_window], from the logits of all windows, one window
        after the other, to those of the image.
    """

    starts: Int[np.ndarray, "n"]
    logits_per_window: int
    matrix: sparse.csr_array

    def mirrored(self) -> "AxisPlan":
        """For a view that is mirrored along this side, and an image that is not."""
        return self._replace(matrix=self.matrix[::-1])

    def part(
        self, start: int, stop: int
    ) -> tuple[Int[np.ndarray, "p"], Float[np.ndarray, "out p"]]:
        """The logits that the image depends on from `start` to `stop`, and the matrix between."""
        matrix = self.matrix[start:stop]
        places = np.unique(matrix.indices)
        return places, matrix[:, places].toarray().astype(np.float32)


def as_slice(places: Int[np.ndarray, "p"]) -> slice | Int[np.ndarray, "p"]:
    """The same places as a slice where nothing lies between them: it copies nothing."""
    first, last = places[[0, -1]]
    return slice(first, last + 1) if last - first + 1 == len(places) else places


@functools.lru_cache(maxsize=256)
def plan_axis(
    size: int, unpadded: int, out: int, crop: int, stride: int, logits_per_window: int
) -> AxisPlan:
    """Windows of `crop` every `stride` along a side.

    Scores are averaged over windows before any softmax, as in the reference (`slide_inference` of
    mmsegmentation's EncoderDecoder).

    Args:
      size: of the network's input; `crop` is at most that.
      unpadded: of which so much is left when padding is cut off.
      out: of the image.
      logits_per_window: along this axis.
    """
    starts = window_starts(size, crop, stride)
    ones, inside = np.ones(crop), np.arange(crop)
    resized = _interpolation(logits_per_window, crop)
    placed = sparse.hstack(
        [
            sparse.csr_array((ones, (start + inside, inside)), shape=(size, crop)) @ resized
            for start in starts
        ],
        format="csr",
    )
    position = np.arange(size)
    seen = sum((position >= start) & (position < start + crop) for start in starts)
    mean = sparse.diags_array(1 / seen, format="csr") @ placed
    matrix = sparse.csr_array(_interpolation(unpadded, out) @ mean[:unpadded])
    matrix.eliminate_zeros()
    return AxisPlan(starts, logits_per_window, matrix)


def _interpolation(size, out):
    lower, upper, fraction = interpolation_taps(size, out)
    weights = np.concatenate([1 - fraction, fraction])
    places = np.tile(np.arange(out), 2), np.concatenate([lower, upper])
    return sparse.csr_array((weights, places), shape=(out, size))
