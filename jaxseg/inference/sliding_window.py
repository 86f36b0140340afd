"""Places windows over an image and maps their logits to the logits of the image.

The logits of each window are resized to the window and averaged where windows overlap. Padding is
cropped and the result is resized to the image. These steps are linear and separable. Each image
axis therefore has one sparse matrix that does all of them. Any rectangle of the result can be
computed on its own. `windowed_view` runs the model on the windows.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from scipy import sparse

from jaxseg.errors import ConfigError
from jaxseg.ops.resize import interpolation_taps


class SlidingWindow(NamedTuple):
    """Holds the size and the stride of windows, in pixels of the network's input.

    Attributes:
      crop_hw: height and width of a window.
      stride_hw: distance from one window to the next, down and to the right.
    """

    crop_hw: tuple[int, int]
    stride_hw: tuple[int, int]


def parse_sliding_window(settings: Mapping[str, Any]) -> SlidingWindow | None:
    """Reads the windows from the settings `config.eval`.

    Returns:
      The windows in mode "slide", and None in mode "whole", which uses no windows.

    Raises:
      ConfigError: if the mode is neither of these, or if the windows cannot cover an image.
    """
    mode = settings["mode"]
    if mode not in ("whole", "slide"):
        raise ConfigError(f"config.eval.mode={mode}: must be 'whole' or 'slide'")
    if mode == "whole":
        return None
    slide = SlidingWindow(*(tuple(settings[key]) for key in SlidingWindow._fields))
    for key, sides in slide._asdict().items():
        if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
            raise ConfigError(
                f"config.eval.{key}={sides}: must be height and width, two whole numbers above 0"
            )
    if any(stride > crop for crop, stride in zip(*slide, strict=True)):
        raise ConfigError(
            f"config.eval.stride_hw={slide.stride_hw} leaves gaps between windows of"
            f" config.eval.crop_hw={slide.crop_hw}; neither side may be longer than the window's"
        )
    return slide


def slide_over(
    input_hw: tuple[int, int], slide: SlidingWindow | None, *, squares: bool
) -> SlidingWindow | None:
    """Returns the windows over an input of a given size.

    Args:
      input_hw: height and width of the network's input, in pixels.
      slide: the windows, or None for one window as large as the input.
      squares: whether windows are squares of the shorter side if both sides of the input are
        smaller than a window, as those of DINOv3.
    """
    if slide is None or not squares:
        return slide
    smaller = all(side < crop for side, crop in zip(input_hw, slide.crop_hw, strict=True))
    return slide._replace(crop_hw=(min(input_hw),) * 2) if smaller else slide


def window_starts(size: int, crop: int, stride: int) -> Integer[np.ndarray, " n"]:
    """Returns the start of every window along an axis.

    Windows start every `stride` pixels. The last one is moved back so that it ends at `size`:

    >>> window_starts(size=100, crop=40, stride=25).tolist()
    [0, 25, 50, 60]

    Args:
      size: length of the axis.
      crop: length of a window, at most `size`.
      stride: distance between windows.
    """
    count = (size - crop + stride - 1) // stride + 1
    return np.minimum(np.arange(count) * stride, size - crop)


class AxisPlan(NamedTuple):
    """Maps the logits of all windows along one image axis to pixels.

    Attributes:
      starts: the start of every window, in pixels of the network's input.
      logits_per_window: number of logits of each window along this axis.
      matrix: [out, len(starts) * logits_per_window]. It maps the logits of all windows,
        concatenated in order, to the logits of the image.
    """

    starts: Integer[np.ndarray, " n"]
    logits_per_window: int
    matrix: sparse.csr_array

    def mirrored(self) -> "AxisPlan":
        """Returns the plan for a view that is mirrored along this axis, unlike the image."""
        return self._replace(matrix=self.matrix[::-1])

    def part(
        self, start: int, stop: int
    ) -> tuple[Integer[np.ndarray, " p"], Float[np.ndarray, "out p"]]:
        """Returns what the pixels of the image from `start` to `stop` depend on.

        Returns:
          The indices of the logits they depend on, and the matrix that maps these to the pixels.
        """
        matrix = self.matrix[start:stop]
        places = np.unique(matrix.indices)
        return places, matrix[:, places].toarray().astype(np.float32)


def as_slice(places: Integer[np.ndarray, " p"]) -> slice | Integer[np.ndarray, " p"]:
    """Returns ascending indices as a slice if they are contiguous, so that indexing copies nothing.

    Other indices are returned unchanged.
    """
    first, last = places[[0, -1]]
    return slice(first, last + 1) if last - first + 1 == len(places) else places


@functools.lru_cache(maxsize=256)
def plan_axis(
    size: int, unpadded: int, out: int, crop: int, stride: int, logits_per_window: int
) -> AxisPlan:
    """Plans the windows along one image axis.

    Logits are averaged over windows before any softmax, as in the reference (`slide_inference` of
    mmsegmentation's EncoderDecoder). All sizes are in pixels.

    Args:
      size: length of the network's input.
      unpadded: length of the input without padding.
      out: length of the image.
      crop: length of a window, at most `size`.
      stride: distance between windows.
      logits_per_window: number of logits of each window along this axis.
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
