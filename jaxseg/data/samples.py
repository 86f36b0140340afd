"""One image with its label: reading both as training and evaluation take them."""

from dataclasses import dataclass

import cv2
import numpy as np

from jaxseg.data.datasets.description import IGNORE, UNKNOWN, LabelFormat, ranges
from jaxseg.data.decoding.pictures import (
    OpenedImage,
    PictureFile,
    image_hw,
    raw_label_hw,
    read_raw_label,
)
from jaxseg.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One image and its label. `name` is the image's file name without its suffix.

    Where there is no label, it is the image again, without a format; it reads as all ignored.
    """

    name: str
    image: PictureFile
    label: PictureFile
    label_format: LabelFormat | None


@dataclass(frozen=True)
class Pairs:
    """Images with their labels, and the pictures on either side that have no counterpart."""

    samples: tuple[Sample, ...]
    images_alone: tuple[PictureFile, ...]
    labels_alone: tuple[PictureFile, ...]


def label_hw(sample: Sample) -> tuple[int, int]:
    """The size that `read_label` gives, from a header alone. Raises CorruptFileError."""
    if sample.label_format is None:
        return image_hw(sample.image)
    return raw_label_hw(sample.label)


def read_label(sample: Sample) -> np.ndarray:
    """uint8 [h, w] of train ids, 255 = ignore.

    Raises CorruptFileError, or DataError where the values are not those of the dataset.
    """
    if sample.label_format is None:
        return np.full(OpenedImage(sample.image).hw, IGNORE, np.uint8)
    raw = read_raw_label(sample.label)
    label = cv2.LUT(raw, sample.label_format.train_ids)
    unknown = label == UNKNOWN
    if unknown.any():
        known = np.flatnonzero(sample.label_format.train_ids != UNKNOWN)
        raise DataError(
            f"{sample.label} holds the label values {ranges(np.unique(raw[unknown]))}, which do not"
            f" exist in files of the kind *{sample.label_format.suffix} (known: {ranges(known)})."
            " Is the file from another dataset, or already mapped? Restore it, or rename it to the"
            " kind that it is. (The values of your own masks are those of config.data.classes.)"
        )
    return label


def read_sample(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [h, w, 3] (BGR) and label uint8 [h, w] (train ids) of the same size.

    Raises what `OpenedImage` and `read_label` do, and DataError where the sizes differ.
    """
    image, label = open_sample(sample)
    return image.first_rows(image.hw[0]), label


def open_sample(sample: Sample) -> tuple[OpenedImage, np.ndarray]:
    """As `read_sample`, with an image that is decoded only as far down as it is asked for."""
    image, label = OpenedImage(sample.image), read_label(sample)
    if image.hw != label.shape:
        raise DataError(
            f"An image and its label differ in size (height, width):\n"
            f"  {sample.image}: {image.hw}\n"
            f"  {sample.label}: {label.shape}\n"
            "Replace the one that was resized or mixed up (an image is turned as its EXIF data "
            "say, a label is not)."
        )
    return image, label
