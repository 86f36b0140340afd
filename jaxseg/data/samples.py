"""Reads one image with its label, in the form that training and evaluation use."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from jaxseg.data.annotations.drawn_label import DrawnLabel
from jaxseg.data.datasets.description import IGNORE, UNKNOWN, LabelFormat, ranges
from jaxseg.data.decoding.pictures import (
    OpenedImage,
    PictureFile,
    image_hw,
    raw_label_hw,
    read_raw_label,
)
from jaxseg.data.picture_files import Skipped
from jaxseg.errors import DataError


@runtime_checkable
class Sample(Protocol):
    """One image and its label.

    Attributes:
      name: the image's file name without its suffix.
      image: the image's file.
      label: the label's file, or the image again if there is no label.
      label_format: how the label is stored, or None if there is no label. A missing label reads as
        ignored everywhere.
    """

    @property
    def name(self) -> str: ...

    @property
    def image(self) -> PictureFile: ...

    @property
    def label(self) -> PictureFile: ...

    @property
    def label_format(self) -> LabelFormat | None: ...


@dataclass(frozen=True)
class NamedSample:
    """A `Sample` whose name is known without opening a file."""

    name: str
    image: PictureFile
    label: PictureFile
    label_format: LabelFormat | None


@dataclass(frozen=True)
class Pairs:
    """Holds images with their labels, and the pictures that have no counterpart.

    Attributes:
      samples: the images that have a label.
      images_alone: the images that have no label.
      labels_alone: the labels that have no image.
      skipped: files and folders beside them that are not read, and why.
    """

    samples: tuple[Sample, ...]
    images_alone: tuple[PictureFile, ...] = ()
    labels_alone: tuple[PictureFile, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def label_hw(sample: Sample) -> tuple[int, int]:
    """Returns the (height, width) that `read_label` gives, reading only a file header.

    Raises:
      CorruptFileError: if the header cannot be read.
    """
    if sample.label_format is None:
        return image_hw(sample.image)
    if isinstance(sample.label, DrawnLabel):
        return sample.label.find_hw()
    return raw_label_hw(sample.label)


def read_label(sample: Sample) -> np.ndarray:
    """Reads a label as train ids, uint8 [h, w], where 255 is ignored.

    Raises:
      CorruptFileError: if the file cannot be read.
      DataError: if the file holds values that the dataset does not have.
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
            " Is the file from another dataset, or already mapped? Restore it, or give it the"
            " suffix of its kind. (config.data.classes lists the values of your own masks.)"
        )
    return label


def read_sample(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its label, which have the same size.

    Returns:
      The image, uint8 [h, w, 3] in BGR, and the label, uint8 [h, w] of train ids.

    Raises:
      CorruptFileError: if a file cannot be read.
      DataError: if the sizes differ, or if the label holds values that the dataset does not have.
    """
    image, label = open_sample(sample)
    return image.first_rows(image.hw[0]), label


def open_sample(sample: Sample) -> tuple[OpenedImage, np.ndarray]:
    """Opens an image and reads its label, as `read_sample` does.

    The image is decoded only as far down as its rows are requested.

    Raises:
      CorruptFileError: if a file cannot be read.
      DataError: if the sizes differ, or if the label holds values that the dataset does not have.
    """
    image, label = OpenedImage(sample.image), read_label(sample)
    if image.hw != label.shape:
        raise DataError(
            f"An image and its label differ in size (height, width):\n"
            f"  {sample.image}: {image.hw}\n"
            f"  {sample.label}: {label.shape}\n"
            "Replace the one that was resized or mixed up (images are rotated according to their "
            "EXIF data, labels are not)."
        )
    return image, label
