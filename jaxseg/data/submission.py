"""Writes class maps in the formats of the Cityscapes and ADE20K benchmark servers.

The files are those that MMSegmentation's `format_results` writes.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg.atomic_files import write_png
from jaxseg.data.datasets.cityscapes import RAW_IDS, RAW_PALETTE
from jaxseg.data.datasets.description import IGNORE, Dataset
from jaxseg.data.samples import Sample
from jaxseg.errors import ConfigError, DataError

ClassMap = UInt8[np.ndarray, "h w"]


def file_name(sample: Sample) -> str:
    """Returns the name of an image's submission: the image's file name with the type `.png`."""
    return f"{sample.image.stem}.png"


def cityscapes_ids() -> np.ndarray:
    """Returns a table from class to raw id, uint8 [256].

    The ignored class 255 maps to id 0. All other values that are not a class map to themselves.
    """
    ids = np.arange(256, dtype=np.uint8)
    ids[: len(RAW_IDS)] = RAW_IDS
    ids[IGNORE] = 0
    return ids


def cityscapes(class_map: ClassMap) -> Image.Image:
    """Returns a class map as a palette image of raw ids in their published colors."""
    picture = Image.fromarray(cityscapes_ids()[class_map]).convert("P")
    picture.putpalette(RAW_PALETTE.tobytes())
    return picture


def ade20k(class_map: ClassMap) -> Image.Image:
    """Returns a class map as a gray image in which classes count from 1."""
    return Image.fromarray(class_map + np.uint8(1))


FORMATS = {"cityscapes": cityscapes, "ade20k": ade20k}


def check_submission(dataset: Dataset) -> None:
    """Checks that a dataset has a submission format.

    Raises:
      ConfigError: if it has none.
    """
    if dataset.name not in FORMATS:
        raise ConfigError(
            f"there is no format for submissions of {dataset.name}; there are formats for"
            f" {' and '.join(FORMATS)} (config.data.val_dataset)"
        )


def check_file_names(samples: Sequence[Sample]) -> None:
    """Checks that every image has a file name of its own.

    Raises:
      DataError: if two images would be written as the same file.
    """
    by_name: dict[str, Sample] = {}
    for sample in samples:
        other = by_name.setdefault(file_name(sample), sample)
        if other is not sample:
            raise DataError(
                f"{other.image} and {sample.image} would both be written as {file_name(sample)};"
                " a submission has all its files in one folder, so rename one of them"
            )


def write_class_map(
    folder: pathlib.Path, dataset: Dataset, sample: Sample, class_map: ClassMap
) -> None:
    """Writes the submission of one image into a folder."""
    write_png(folder / file_name(sample), FORMATS[dataset.name](class_map))
