"""One view of an image in windows, which go through the network as they are needed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxseg.inference import tiles
from jaxseg.inference.batcher import Batcher, Crop
from jaxseg.inference.sliding_window import AxisPlan, SlidingWindow, as_slice, plan_axis

Hw = tuple[int, int]
Cut = Callable[[int, int, Hw], Float[np.ndarray, "h w 3"]]  # (top, left, (height, width)) -> pixels


class PendingBand(NamedTuple):
    """A view's part of some rows of an image, while its windows are on their way.

    Attributes:
      matrix: from the rows of logits that are needed to the rows of the image.
      windows: per row of windows, its crops and the rows of logits that are needed of them.
    """

    weight: int
    matrix: Float[np.ndarray, "out p"]
    windows: list[tuple[list[Crop], slice | np.ndarray]]
    columns: AxisPlan

    def result(self, batcher: Batcher) -> tiles.Band:
        """Waits for the windows."""
        logits = [
            np.concatenate([batcher.logits(crop)[rows] for crop in crops], axis=1)
            for crops, rows in self.windows
        ]
        return tiles.Band(self.weight, self.matrix, np.concatenate(logits), self.columns)


class WindowedView:
    """One view of an image, sent through the network row by row of windows, as they are needed.

    Args:
      cut: gives any part of the view as the network takes it.
      input_hw: the size of the view.
      unpadded_hw: of which so much is left when padding is cut off.
      out_hw: the size of the image.
      slide: None for one window as large as the view. No window is larger than that.
      mirrored: the view is mirrored left to right, and the image is not.
      weight: how many views it stands for.
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
        self._batcher, self._cut, self._weight = batcher, cut, weight
        crop_hw, stride_hw = slide or (input_hw, input_hw)
        self._crop_hw = tuple(map(min, crop_hw, input_hw))
        sides = zip(
            input_hw,
            unpadded_hw,
            out_hw,
            self._crop_hw,
            stride_hw,
            batcher.logits_hw(self._crop_hw),
            strict=True,
        )
        self._rows, columns = (plan_axis(*side) for side in sides)
        self._columns = columns.mirrored() if mirrored else columns
        self._sent: dict[int, list[Crop]] = {}

    def band(self, start: int, stop: int) -> PendingBand:
        """Sends what the rows from `start` to `stop` of the image need and the last did not."""
        places, matrix = self._rows.part(start, stop)
        windows, inside = np.divmod(places, self._rows.logits_per_window)
        needed = np.unique(windows).tolist()
        self._sent = {row: self._sent.get(row) or self._send(row) for row in needed}
        of_windows = [(self._sent[row], as_slice(inside[windows == row])) for row in needed]
        return PendingBand(self._weight, matrix, of_windows, self._columns)

    def _send(self, row):
        top = int(self._rows.starts[row])
        return [
            self._batcher.send(self._cut(top, int(left), self._crop_hw))
            for left in self._columns.starts
        ]
