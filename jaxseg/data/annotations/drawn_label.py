"""Labels that are drawn when they are read, from annotations instead of one value per pixel.

A `DrawnLabel` takes the place of a picture file. Its content is an array of train ids in the format
of `jaxseg.data.decoding.arrays`.
"""

import abc
import io
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool

from jaxseg.data.decoding import arrays
from jaxseg.data.decoding.pictures import MOST_PIXELS
from jaxseg.errors import DataError


class Canvas:
    """Draws a label, shape after shape; later shapes cover earlier ones.

    Attributes:
      label: the train ids, uint8 [h, w].
      overlap: which pixels belong to shapes of several classes, bool [h, w].
    """

    def __init__(self, hw: tuple[int, int], background: int):
        if min(hw) < 1 or hw[0] * hw[1] > MOST_PIXELS:
            raise DataError(f"annotations of an image of {hw[0]}x{hw[1]} pixels cannot be drawn")
        self.label = np.full(hw, background, np.uint8)
        self.overlap = np.zeros(hw, bool)
        self._covered = np.zeros(hw, bool)

    def draw(
        self, mask: Bool[np.ndarray, "m n"], train_id: int, corner: tuple[int, int] = (0, 0)
    ) -> None:
        """Gives pixels a class.

        Args:
          mask: which pixels, in a part of the label.
          train_id: the class.
          corner: (y, x) of the first pixel of the part.
        """
        y, x = corner
        here = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
        self.overlap[here] |= mask & self._covered[here] & (self.label[here] != train_id)
        self._covered[here] |= mask
        self.label[here][mask] = train_id


class DrawnLabel(abc.ABC):
    """A label that is drawn from annotations; it takes the place of a picture file."""

    @property
    @abc.abstractmethod
    def stem(self) -> str:
        """The name of the label without a suffix."""

    @property
    @abc.abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that the label is drawn from."""

    @abc.abstractmethod
    def find_hw(self) -> tuple[int, int]:
        """Returns the (height, width) of the label, without drawing it.

        Raises:
          DataError: if the annotations cannot be read or do not fit.
        """

    @abc.abstractmethod
    def draw(self) -> Canvas:
        """Draws the label.

        Raises:
          DataError: if the annotations cannot be read or do not fit.
        """

    def read_bytes(self) -> bytes:
        """Returns the content of a picture file that holds the label."""
        return arrays.to_bytes(self.draw().label)

    def open(self, mode: Literal["rb"]) -> io.BufferedIOBase:
        """Opens that content."""
        return io.BytesIO(self.read_bytes())


class LabelInFile(DrawnLabel):
    """A label that is drawn from a file of its own, which gives it its name.

    Attributes:
      file: the file.
    """

    def __init__(self, file: Path):
        self.file = file

    @property
    def stem(self) -> str:
        return self.file.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def __str__(self) -> str:
        return str(self.file)
