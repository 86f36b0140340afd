"""Runs one view of an image through the network in windows, as they are needed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg.inference import tiles
from jaxseg.inference.batcher import Batcher, Crop
from jaxseg.inference.class_tiles import join_tiles, plan_tiles
from jaxseg.inference.sliding_window import AxisPlan, SlidingWindow, as_slice, plan_axis

Hw = tuple[int, int]
Cut = Callable[[int, int, Hw], Float[np.ndarray, "h w 3"]]  # (top, left, (height, width)) -> pixels


class PendingBand(NamedTuple):
    """Represents one view's share of some rows of an image while its windows are in flight.

    Attributes:
      weight: number of identical views that this one represents.
      matrix: the matrix that maps the needed rows of logits to the rows of the image.
      windows: for each row of windows, its crops and which rows of their logits are needed.
      columns: the plan that maps columns of logits to columns of the image.
    """

    weight: int
    matrix: Float[np.ndarray, "out p"]
    windows: list[tuple[list[Crop], slice | np.ndarray]]
    columns: AxisPlan

    def result(self, batcher: Batcher) -> tiles.Band:
        """Waits for the logits of the windows and returns them as a band."""
        logits = [
            np.concatenate([batcher.logits(crop)[rows] for crop in crops], axis=1)
            for crops, rows in self.windows
        ]
        return tiles.Band(self.weight, self.matrix, np.concatenate(logits), self.columns)


class PendingClasses(NamedTuple):
    """Represents the class map of an image while the one window of its one view is in flight.

    Attributes:
      crop: the window.
      batcher: runs it.
      hw: height and width of the image.
    """

    crop: Crop
    batcher: Batcher
    hw: Hw

    @property
    def waiting(self) -> bool:
        """Whether the window is not running yet."""
        return self.crop.waiting

    def result(self) -> UInt8[np.ndarray, "h w"]:
        """Waits for the classes of all tiles and returns the class map."""
        return join_tiles(self.batcher.classes(self.crop), self.hw)


class WindowedView:
    """Sends one view of an image through the network, one row of windows at a time.

    All sizes are (height, width) in pixels.

    Args:
      batcher: runs the windows.
      cut: returns any part of the view in the form that the network takes.
      input_hw: size of the view with padding.
      unpadded_hw: size of the view without padding.
      out_hw: size of the image.
      slide: size and stride of the windows, or None for one window as large as the view. Windows
        are never larger than the view.
      mirrored: whether the view is mirrored left to right relative to the image.
      weight: number of identical views that this one represents.

    Attributes:
      crop_hw: size of every window.
    """

    def __init__(
        self,
        batcher: Batcher,
        cut: Cut,
        input_hw: Hw,
        unpadded_hw: Hw,
        out_hw: Hw,
        slide: SlidingWindow | None,
        mirrored: bool = False,
        weight: int = 1,
    ):
        self._batcher, self._cut, self._weight, self._out_hw = batcher, cut, weight, out_hw
        largest_hw, stride_hw = slide or (input_hw, input_hw)
        self.crop_hw = tuple(map(min, largest_hw, input_hw))
        sides = zip(
            input_hw,
            unpadded_hw,
            out_hw,
            self.crop_hw,
            stride_hw,
            batcher.logits_hw(self.crop_hw),
            strict=True,
        )
        self._rows, columns = (plan_axis(*side) for side in sides)
        self._columns = columns.mirrored() if mirrored else columns
        self._sent: dict[int, list[Crop]] = {}

    @property
    def is_whole(self) -> bool:
        """Whether the view has one window, which shows all of the image."""
        return len(self._rows.starts) == len(self._columns.starts) == 1

    def tile_shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes that `classes` needs an executable for, besides that of the model."""
        logits_hw = self._batcher.logits_hw(self._batcher.program(self.crop_hw).hw)
        plans = zip((self._rows, self._columns), logits_hw, strict=True)
        return [plan_tiles([plan], logits).matrices.shape for plan, logits in plans]

    def classes(self) -> PendingClasses:
        """Sends the one window of a whole view, to get the classes of the image and no logits."""
        pixels = self._cut(0, 0, self.crop_hw)
        crop = self._batcher.send(pixels, (self._rows, self._columns))
        return PendingClasses(crop, self._batcher, self._out_hw)

    def band(self, start: int, stop: int) -> PendingBand:
        """Sends the windows that the image rows from `start` to `stop` need.

        Windows that the previous band needed too are not sent again.
        """
        places, matrix = self._rows.part(start, stop)
        windows, inside = np.divmod(places, self._rows.logits_per_window)
        needed = np.unique(windows).tolist()
        self._sent = {row: self._sent.get(row) or self._send(row) for row in needed}
        of_windows = [(self._sent[row], as_slice(inside[windows == row])) for row in needed]
        return PendingBand(self._weight, matrix, of_windows, self._columns)

    def _send(self, row):
        top = int(self._rows.starts[row])
        return [
            self._batcher.send(self._cut(top, int(left), self.crop_hw))
            for left in self._columns.starts
        ]
