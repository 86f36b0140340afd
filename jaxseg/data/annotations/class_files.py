"""Labels drawn from masks of single classes: one file for each class of an image."""

from collections.abc import Mapping
from pathlib import Path

from jaxseg.data.annotations.drawn_label import Canvas, DrawnLabel
from jaxseg.data.decoding import pictures
from jaxseg.errors import DataError


class ClassFilesLabel(DrawnLabel):
    """The label of an image that has one mask for each class; values above 0 are the class."""

    def __init__(self, stem: str, masks: Mapping[Path, int], background: int):
        """Describes a label.

        Args:
          stem: the name of the label.
          masks: the train id of each mask, the lowest one first.
          background: the train id of what no mask covers.
        """
        self._stem, self.masks, self.background = stem, masks, background

    @property
    def stem(self) -> str:
        return self._stem

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.masks)

    def __str__(self) -> str:
        first, *others = self.files
        return f"{first} and {len(others)} more" if others else str(first)

    def find_hw(self) -> tuple[int, int]:
        return pictures.raw_label_hw(self.files[0])

    def draw(self) -> Canvas:
        """Draws the masks, those of later classes over those of earlier ones."""
        canvas = Canvas(self.find_hw(), self.background)
        for file, train_id in self.masks.items():
            mask = pictures.read_raw_label(file) > 0
            if mask.shape != canvas.label.shape:
                raise DataError(
                    f"{file} has {mask.shape[0]}x{mask.shape[1]} pixels, and other masks of the"
                    f" same image {canvas.label.shape[0]}x{canvas.label.shape[1]}"
                )
            canvas.draw(mask, train_id)
        return canvas
