"""Masks that hold a color per pixel, as annotation tools export them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from jaxseg.data.annotations.drawn_label import Canvas, LabelInFile
from jaxseg.data.decoding import pictures
from jaxseg.errors import DataError, first_few
from jaxseg.recipes.class_list import Color


class ColorMask(LabelInFile):
    """A color mask whose label has the index of each pixel's color in a list."""

    def __init__(self, file: Path, colors: Sequence[Color]):
        """Describes a mask.

        Args:
          file: the mask.
          colors: at most 256 colors.
        """
        super().__init__(file)
        self.colors = tuple(colors)

    def find_hw(self) -> tuple[int, int]:
        return pictures.raw_label_hw(self.file)

    def draw(self) -> Canvas:
        """Draws the label.

        Raises:
          DataError: if the mask cannot be read, or holds another color.
        """
        codes = color_codes(pictures.read_colors(self.file))
        known = color_codes(np.array(self.colors, np.uint8))
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], codes), len(known) - 1)
        index = order[place]
        unknown = known[index] != codes
        if unknown.any():
            found, counts = np.unique(codes[unknown], return_counts=True)
            by_count = np.argsort(-counts)
            what = [f"#{found[i]:06x} in {counts[i]} pixels" for i in by_count]
            raise DataError(
                f"{self.file} holds colors that config.data.classes does not list ({len(what)}):"
                f"{first_few(what)}\n{_hint(self.file, len(what))}"
            )
        canvas = Canvas(codes.shape, 0)
        canvas.label[:] = index
        return canvas


def _hint(file, count):
    if file.suffix.lower() in (".jpg", ".jpeg"):
        return "JPEG changes colors. Export the masks as PNG."
    if count > 20:
        return (
            "So many colors come from smoothing or resizing. Export the masks again, without"
            " smoothing and with nearest neighbor, or check config.data.labels: is it a photograph?"
        )
    return "Add a line for each of them, such as '#804080: road' or '#000000: ignore'."


def color_codes(colors: Integer[np.ndarray, "*n 3"]) -> Integer[np.ndarray, "*n"]:
    """Returns each RGB color as one number.

    >>> hex(color_codes(np.array([[128, 64, 128]]))[0])
    '0x804080'
    """
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue
