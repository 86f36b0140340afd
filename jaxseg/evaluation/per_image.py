"""Keeps what each image contributes to the scores of a dataset: pixels per class.

Scores are ratios of sums over images. With the summands on disk, any subset of the images can be
scored later, for instance in a bootstrap over images (`jaxseg report`).
"""

import dataclasses
import io
import pathlib
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np
from jaxtyping import Integer

from jaxseg.atomic_files import write_bytes
from jaxseg.errors import CorruptFileError, first_line


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PerImageCounts:
    """The counts of an evaluation, image by image.

    Ignored pixels are not counted.

    Attributes:
      images: the path of each of the N images, as in `images.csv`.
      image_hw: height and width of each image in pixels, [N, 2].
      classes: the names of the C classes.
      palette: the color of each class in pictures, RGB in 0..255, [C, 3].
      intersection: pixels per image and class whose label and prediction are this class, [N, C].
      labeled: pixels whose label is this class, [N, C].
      predicted: pixels whose prediction is this class, [N, C].
      confusion: the confusion matrix of all images together, [C + 1, C + 1]
        (`jaxseg.evaluation.metrics.confusion_matrix`).
    """

    images: tuple[str, ...]
    image_hw: Integer[np.ndarray, "n 2"]
    classes: tuple[str, ...]
    palette: Integer[np.ndarray, "c 3"]
    intersection: Integer[np.ndarray, "n c"]
    labeled: Integer[np.ndarray, "n c"]
    predicted: Integer[np.ndarray, "n c"]
    confusion: Integer[np.ndarray, "c+1 c+1"]


# What NumPy raises for files that are damaged, or of another kind.
UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError)
UNREADABLE += (MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
FIELDS = [field.name for field in dataclasses.fields(PerImageCounts)]


def write_per_image(path: pathlib.Path, counts: PerImageCounts):
    """Writes the counts as one compressed `.npz` file, an array for each attribute.

    Raises:
      OutputError: if the file cannot be written.
    """
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(getattr(counts, name)) for name in FIELDS}
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getbuffer())


def read_per_image(path: pathlib.Path) -> PerImageCounts:
    """Reads a file of `write_per_image`.

    Raises:
      CorruptFileError: if the file cannot be read, lacks an array, or has arrays of other shapes.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found: dict[str, Any] = {name: file[name] for name in FIELDS}
    except UNREADABLE as error:
        raise CorruptFileError(
            f"{path} is not a file of counts per image: {first_line(error)}; evaluate the run again"
        ) from error
    n, c = len(found["images"]), len(found["classes"])
    shapes = {"images": (n,), "classes": (c,), "image_hw": (n, 2), "palette": (c, 3)}
    shapes["confusion"] = (c + 1, c + 1)
    for name, array in found.items():
        if array.shape != shapes.get(name, (n, c)):
            raise CorruptFileError(
                f"{path}: {name} has shape {array.shape}, expected {shapes.get(name, (n, c))};"
                " evaluate the run again"
            )
        if array.dtype.kind not in ("U" if name in ("images", "classes") else "iu"):
            raise CorruptFileError(f"{path}: {name} is {array.dtype}; evaluate the run again")
    for name in ("images", "classes"):
        found[name] = tuple(found[name].tolist())
    return PerImageCounts(**found)
