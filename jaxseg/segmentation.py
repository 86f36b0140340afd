"""The result of segmenting an image."""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg.atomic_files import write_png
from jaxseg.data import picture_files
from jaxseg.data.datasets.description import Dataset
from jaxseg.inference.segments import Segments
from jaxseg.reporting import visualize


class Segmentation:
    """The classes of an image's pixels.

    Attributes:
      image: the image, RGB.
      classes: the class of every pixel.
      names: the name of every class.
      path: the file that the image came from, or None.
    """

    def __init__(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        classes: UInt8[np.ndarray, "h w"],
        dataset: Dataset,
        path: pathlib.Path | None,
        probabilities: Callable[[], Float[np.ndarray, "h w k"]],
        segments: Callable[..., Segments],
    ):
        self.image, self.classes, self.path = image, classes, path
        self.names, self._palette = dataset.classes, dataset.palette
        self._compute_probabilities, self._compute_segments = probabilities, segments

    def probabilities(self) -> Float[np.ndarray, "h w k"]:
        """Returns the probability of every class at every pixel.

        The model runs once more, unless `Segmenter.stream` was asked for probabilities.
        """
        return self._compute_probabilities()

    def segments(self, *, overlapping: bool = False) -> Segments:
        """Returns the segments of Mask2Former (`Segmenter.segments`). The model runs once more.

        Args:
          overlapping: return a segment for every query.

        Raises:
          ConfigError: for a model with another head.
        """
        return self._compute_segments(overlapping=overlapping)

    def shares(self) -> dict[str, float]:
        """Returns the share of the pixels of every class that occurs, the largest first."""
        return class_shares(self.classes, self.names)

    def overlay(self, alpha: float = 0.5) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the image with the classes in color over it and a legend below.

        Args:
          alpha: the opacity of the colors, from 0 to 1.
        """
        return visualize.prediction_picture(
            self.image, self.classes, self.names, self._palette, alpha
        )

    def save(self, path: str | os.PathLike) -> list[pathlib.Path]:
        """Writes PATH_classes.png, the class of every pixel, and PATH_overlay.png.

        Args:
          path: the files without these ends, such as masks/photo.

        Returns:
          The two files.

        Raises:
          OutputError: if a file cannot be written.
        """
        ends = picture_files.CLASSES, picture_files.OVERLAY
        files = [pathlib.Path(f"{os.fspath(path)}{end}") for end in ends]
        for file, pixels in zip(files, (self.classes, self.overlay()), strict=True):
            write_png(file, pixels)
        return files


def class_shares(classes: UInt8[np.ndarray, "h w"], names: Sequence[str]) -> dict[str, float]:
    """Returns the share of the pixels of every class that occurs, the largest first.

    Args:
      classes: the class of every pixel.
      names: the name of every class.
    """
    counts = np.bincount(classes.ravel(), minlength=len(names))
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
    return {names[k]: float(counts[k] / classes.size) for k in order}
