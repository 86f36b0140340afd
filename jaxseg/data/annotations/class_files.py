"""Labels drawn from masks of single classes: one file for each class of an image."""

from collections.abc import Mapping
from pathlib import Path

from jaxseg.data.annotations.drawn_label import Canvas, DrawnLabel
from jaxseg.data.decoding import pictures
from jaxseg.errors import DataError


class ClassFilesLabel(DrawnLabel):
    """The label of an image that has one mask for each class; values above 0 are the class."""

    def __init__(self, stem: str, files: Mapping[Path, int], background: int):
        """Describes a label.

        Args:
          stem: the name of the label.
          files: the train id of each mask, the lowest one first.
          background: the train id of what no mask covers.
        """
        self._stem, self.files, self.background = stem, files, background

    @property
    def stem(self) -> str:
        return self._stem

    def __str__(self) -> str:
        first = next(iter(self.files))
        return f"{first} and {len(self.files) - 1} more" if len(self.files) > 1 else str(first)

    def draw(self) -> Canvas:
        """Draws the masks, those of later classes over those of earlier ones."""
        first, *_ = self.files
        canvas = Canvas(pictures.raw_label_hw(first), self.background)
        for file, train_id in self.files.items():
            mask = pictures.read_raw_label(file) > 0
            if mask.shape != canvas.label.shape:
                raise DataError(
                    f"{file} has {mask.shape[0]}x{mask.shape[1]} pixels, and other masks of the"
                    f" same image {canvas.label.shape[0]}x{canvas.label.shape[1]}"
                )
            canvas.draw(mask, train_id)
        return canvas
