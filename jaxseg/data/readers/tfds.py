"""Reads prepared datasets of TensorFlow Datasets (TFDS), without TensorFlow.

Pictures are read from the records as the stored bytes. They are then decoded and checked like
picture files. A dataset must be prepared in the ArrayRecord format. The code that built it is not
needed.
"""

import functools
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.description import Dataset, LabelFormat
from jaxseg.data.decoding.pictures import PictureFile
from jaxseg.data.readers import scene_parse150
from jaxseg.data.samples import Pairs
from jaxseg.errors import ConfigError, DataError, first_few

FORMAT = "array_record"
# Another name of a split, for datasets that do not have it under its own name.
SPLITS = {"training": "train", "train": "training", "val": "validation", "validation": "val"}
LABEL_NAMES = re.compile("segmentation|annotation|label|mask")
ID_FEATURES = ("image_id", "file_name", "filename", "image/filename", "image/id", "id")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def pairs(
    name: str, dataset: Dataset, root: Path, splits: Sequence[str], *, labeled: bool
) -> Pairs:
    """Finds the samples of these splits, one after the other, in the order of the records.

    The label values are those of the release, which the last of `dataset.label_formats` describes
    that has one value per pixel.

    Args:
      name: NAME[/CONFIG][:VERSION]. Without a version, the newest is read.
      root: the folder that TFDS calls data_dir.
      labeled: False ignores all labels, whether or not there are any.

    Raises:
      ConfigError: if the package tensorflow_datasets is not installed, or if the labels of the
        user's own classes have colors.
      DataError: if the dataset, one of its splits or one of its files is missing, if its format is
        not ArrayRecord, or if its image and label features cannot be determined.
    """
    folder = _prepared(name, root)
    info = _tfds().builder_from_directory(folder).info
    if info.file_format.value != FORMAT:
        raise DataError(
            f"{folder} is in the format {info.file_format.value}, which only TensorFlow can read."
            f" Prepare it again in another folder.\n{_preparation(name)}"
        )
    image_key, label_key = _image_and_label(name, info.features, labeled)
    instances = info.name == scene_parse150.NAME
    label_format = None
    if labeled:
        label_format = scene_parse150.LABELS if instances and dataset is ADE20K else None
        label_format = label_format or _stored_format(name, dataset)
    samples = []
    for wanted in splits:
        split = _split(name, info, wanted)
        records = Records(folder, split)
        for index in range(info.splits[split].num_examples):
            image = label = Feature(records, index, image_key)
            if labeled and label_key:
                label = Feature(records, index, label_key)
                label = scene_parse150.RedChannel(label) if instances else label
            samples.append(Example(image, label, label_format))
    return Pairs(tuple(samples))


def _stored_format(name: str, dataset: Dataset) -> LabelFormat:
    for form in reversed(dataset.label_formats):
        if form.opened is None:
            return form
    raise ConfigError(
        f"tfds:{name}: config.data.classes lists colors, but labels of TFDS have a value per pixel;"
        " list the values, such as '7: road'"
    )


@dataclass(frozen=True)
class Records:
    """Reads the examples of a split.

    Every process opens the files for itself, when it first reads an example.

    Attributes:
      folder: the folder of the prepared dataset.
      split: the split's name in that dataset.
    """

    folder: Path
    split: str

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Returns an example with undecoded pictures.

        Raises:
          OSError: if it cannot be read.
        """
        try:
            return self._opened[index]
        except RuntimeError as error:
            raise OSError(str(error)) from error

    def name(self, index: int) -> str:
        """Returns the name that the example holds, or one made of its split and its place."""
        try:
            example = self[index]
        except OSError:
            example = {}
        key = next((key for key in ID_FEATURES if key in example), None)
        if key is None:
            return f"{self.split}_{index:06d}"
        value = example[key]
        path = PurePosixPath(value.decode() if isinstance(value, bytes) else str(value))
        return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name

    @functools.cached_property
    def _opened(self):
        builder = _tfds().builder_from_directory(self.folder)
        skip = _tfds().decode.SkipDecoding()
        undecoded = {key: skip for key in _pictures(builder.info.features)}
        return builder.as_data_source(self.split, decoders=undecoded)

    def __reduce__(self):
        return Records, (self.folder, self.split)


@dataclass(frozen=True)
class Feature:
    """Reads one picture of one example as a `PictureFile`.

    Attributes:
      records: the examples of the split.
      index: the place of the example in the split.
      key: the feature's name.
    """

    records: Records
    index: int
    key: str

    @property
    def stem(self) -> str:
        return self.records.name(self.index)

    def read_bytes(self) -> bytes:
        return self.records[self.index][self.key]

    def open(self, mode: str) -> io.BufferedIOBase:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        split = self.records.split
        return f"{self.records.folder}: {self.key} of {self.stem}, {split}[{self.index}]"


@dataclass(frozen=True)
class Example:
    """A `Sample` whose name is read from its record only when it is needed."""

    image: PictureFile
    label: PictureFile
    label_format: LabelFormat | None

    @property
    def name(self) -> str:
        return self.image.stem


def _tfds():
    """Imports tensorflow_datasets only when it is needed, since that takes most of a second."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError(
            "config.data.source=tfds:NAME needs TensorFlow Datasets: pip install 'jaxseg[tfds]'"
        ) from error
    return tensorflow_datasets


def _prepared(name: str, root: Path) -> Path:
    """Returns the dataset's folder: that of the newest version, unless `name` has a version."""
    folder = root / name.replace(":", "/")
    if (folder / "dataset_info.json").is_file():
        return folder
    versions = [
        version
        for version in folder.glob("*.*.*")
        if re.fullmatch(r"\d+\.\d+\.\d+", version.name)
        and (version / "dataset_info.json").is_file()
    ]
    if versions:
        return max(versions, key=lambda version: [int(n) for n in version.name.split(".")])
    there = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    found = sorted({str(info.parent.parent.relative_to(root)) for info in there})
    raise DataError(
        f"No prepared TFDS dataset {name} under {root} (data.root, or data.val_root): expected"
        f" {folder}/VERSION/dataset_info.json, found {', '.join(found) or 'no dataset at all'}.\n"
        f"{_preparation(name)}"
    )


def _preparation(name: str) -> str:
    return (
        "To prepare it, where TensorFlow is installed:\n  python -c 'import tensorflow_datasets as"
        f' tfds; tfds.builder("{name}", data_dir="FOLDER", file_format="{FORMAT}")'
        ".download_and_prepare()'"
    )


def _split(name: str, info, wanted: str) -> str:
    """Returns the split's name in the dataset, after a check that all its files exist."""
    special = scene_parse150.SPLITS if info.name == scene_parse150.NAME else {}
    names = (wanted, SPLITS.get(wanted), special.get(wanted))
    split = next((split for split in names if split in info.splits), None)
    if split is None:
        raise DataError(f"tfds:{name} has no split {wanted!r}; there are {', '.join(info.splits)}")
    if missing := [path for path in info.splits[split].filepaths if not path.exists()]:
        raise DataError(
            f"{len(missing)} files of tfds:{name} are missing:{first_few(missing)}\n"
            "Copy the folder completely."
        )
    return split


def _pictures(features) -> dict[str, Any]:
    image = _tfds().features.Image
    return {key: feature for key, feature in features.items() if isinstance(feature, image)}


def _image_and_label(name: str, features, labeled: bool) -> tuple[str, str | None]:
    """Returns the names of the features that hold the image and the label.

    The label is the picture with one channel, or else one with three. If there are several, its
    name tells. The image is the other picture with three channels, or the one named "image".
    """
    pictures = _pictures(features)
    colors = [key for key, feature in pictures.items() if feature.shape[-1] == 3]
    gray = [
        key
        for key, feature in pictures.items()
        if feature.shape[-1] == 1 and np.issubdtype(feature.np_dtype, np.integer)
    ]
    named = [key for key in gray or colors if LABEL_NAMES.search(key)]
    label = _only(gray) or _only(named)
    images = [key for key in colors if key != label]
    image = _only(images) or _only([key for key in images if key == "image"])
    if image is None or (labeled and label is None):
        listed = "".join(f"\n  {key}: {feature}" for key, feature in features.items())
        raise DataError(
            f"Cannot tell which feature of tfds:{name} holds the {'labels' if image else 'images'}."
            " Images need an Image of three channels, named image if there are several. Labels need"
            " an Image of one channel, named segmentation, annotation, label or mask if there are"
            f" several. The features are:{listed}"
        )
    return image, label


def _only(keys: list[str]) -> str | None:
    return keys[0] if len(keys) == 1 else None
