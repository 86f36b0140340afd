"""One view of an image in windows, which go through the network as they are needed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxseg.inference import tiles
from jaxseg.inference.batcher import Batcher, Crop
from jaxseg.inference.sliding_window import Side, Slide, as_slice, side_of

Hw = tuple[int, int]
Cut = Callable[[int, int, Hw], Float[np.ndarray, "h w 3"]]  # (top, left, (height, width)) -> pixels


class PendingBand(NamedTuple):
    """A view's part of some rows of an image, while its windows are on their way.

    Attributes:
      matrix: from the rows of scores that are needed to the rows of the image.
      windows: per row of windows, its pieces and the rows of scores that are needed of them.
    """

    weight: int
    matrix: Float[np.ndarray, "out p"]
    windows: list[tuple[list[Crop], slice | np.ndarray]]
    columns: Side

    def result(self, network: Batcher) -> tiles.Band:
        """Waits for the windows."""
        scores = [
            np.concatenate([network.scores(piece)[rows] for piece in pieces], axis=1)
            for pieces, rows in self.windows
        ]
        return tiles.Band(self.weight, self.matrix, np.concatenate(scores), self.columns)


class WindowedView:
    """One view of an image, sent through the network row by row of windows, as they are needed.

    Args:
      cut: gives any part of the view as the network takes it.
      input_hw: the size of the view.
      kept_hw: of which so much is left when padding is cut off.
      out_hw: the size of the image.
      slide: None for one window as large as the view. No window is larger than that.
      mirrored: the view is mirrored left to right, and the image is not.
      weight: how many views it stands for.
    """

    def __init__(
        self,
        network: Batcher,
        cut: Cut,
        input_hw: Hw,
        kept_hw: Hw,
        out_hw: Hw,
        slide: Slide | None,
        mirrored: bool = False,
        weight: int = 1,
    ):
        self._network, self._cut, self._weight = network, cut, weight
        crop_hw, stride_hw = slide or (input_hw, input_hw)
        self._crop_hw = tuple(map(min, crop_hw, input_hw))
        sides = zip(
            input_hw,
            kept_hw,
            out_hw,
            self._crop_hw,
            stride_hw,
            network.scores_hw(self._crop_hw),
            strict=True,
        )
        self._rows, columns = (side_of(*side) for side in sides)
        self._columns = columns.mirrored() if mirrored else columns
        self._sent: dict[int, list[Crop]] = {}

    def band(self, start: int, stop: int) -> PendingBand:
        """Sends what the rows from `start` to `stop` of the image need and the last did not."""
        places, matrix = self._rows.part(start, stop)
        windows, inside = np.divmod(places, self._rows.scores)
        needed = np.unique(windows).tolist()
        self._sent = {row: self._sent.get(row) or self._send(row) for row in needed}
        of_windows = [(self._sent[row], as_slice(inside[windows == row])) for row in needed]
        return PendingBand(self._weight, matrix, of_windows, self._columns)

    def _send(self, row):
        top = int(self._rows.starts[row])
        return [
            self._network.send(self._cut(top, int(left), self._crop_hw))
            for left in self._columns.starts
        ]
