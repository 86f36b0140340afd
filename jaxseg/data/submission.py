"""Class maps as the benchmarks' servers take them: of Cityscapes and of ADE20K.

As MMSegmentation's `format_results` writes them.
"""

import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg.data.datasets.cityscapes import RAW_IDS, RAW_PALETTE
from jaxseg.data.datasets.description import IGNORE, Dataset
from jaxseg.data.samples import Sample
from jaxseg.errors import ConfigError

ClassMap = UInt8[np.ndarray, "h w"]


def file_name(sample: Sample) -> str:
    """The name of an image's submission: that of the image, with its whole suffix but the type."""
    return f"{sample.image.stem}.png"


def cityscapes_ids() -> np.ndarray:
    """uint8 [256], class -> raw id; what is no class stays, but for 255: that is id 0."""
    ids = np.arange(256, dtype=np.uint8)
    ids[: len(RAW_IDS)] = RAW_IDS
    ids[IGNORE] = 0
    return ids


def cityscapes(class_map: ClassMap) -> Image.Image:
    """Raw ids, in their colors."""
    picture = Image.fromarray(cityscapes_ids()[class_map]).convert("P")
    picture.putpalette(RAW_PALETTE.tobytes())
    return picture


def ade20k(class_map: ClassMap) -> Image.Image:
    """Gray: classes from 1 on."""
    return Image.fromarray(class_map + np.uint8(1))


FORMATS = {"cityscapes": cityscapes, "ade20k": ade20k}


def check_submission(dataset: Dataset):
    """Raises ConfigError for a dataset without a form for submissions."""
    if dataset.name not in FORMATS:
        raise ConfigError(
            f"there is no form for submissions of {dataset.name}; there is one of"
            f" {' and '.join(FORMATS)} (config.data.val_dataset)"
        )


def write_class_map(folder: pathlib.Path, dataset: Dataset, sample: Sample, class_map: ClassMap):
    """Writes the submission of one image."""
    FORMATS[dataset.name](class_map).save(folder / file_name(sample))
