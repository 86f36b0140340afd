"""Finds the labels of a split: pictures, annotations of single images, or one file for all."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxseg.data import picture_files
from jaxseg.data.annotations import coco
from jaxseg.data.annotations.class_files import ClassFilesLabel
from jaxseg.data.datasets.description import Dataset, LabelFormat
from jaxseg.data.decoding.pictures import PictureFile
from jaxseg.data.picture_files import Skipped
from jaxseg.errors import DataError

CLASS = "{class}"  # in a folder or suffix: there is one file for each class


class Labels(NamedTuple):
    """The labels of a split.

    Attributes:
      by_stem: the labels for each image path without its suffix, the preferred one first.
      skipped: files and folders that are not read, and why.
    """

    by_stem: Mapping[str, Sequence[tuple[PictureFile, LabelFormat]]]
    skipped: list[Skipped]


def find(dataset: Dataset, folder: Path) -> Labels:
    """Finds the labels of a dataset.

    Args:
      dataset: the dataset.
      folder: the folder of the labels, or the JSON file that holds all of them.

    Raises:
      DataError: if two labels have the same name, or the JSON file cannot be read.
    """
    first, names = dataset.label_formats[0], dataset.class_names
    if names and folder.suffix.lower() == ".json":
        labels = coco.labels(folder, names)
        stems = {picture_files.without_suffix(name): label for name, label in labels.items()}
        return Labels({stem: [(label, first)] for stem, label in stems.items()}, [])
    if names and (CLASS in str(folder) or CLASS in first.suffix):
        return _of_single_classes(names, folder, first)
    suffixes = [form.suffix for form in dataset.label_formats]
    found = picture_files.find(folder, suffixes)
    labels = {}
    for form in dataset.label_formats:
        for stem, name in by_stem(folder, found.names, [form.suffix]).items():
            file = folder / name
            label = form.opened(file) if form.opened else file
            labels.setdefault(stem, []).append((label, form))
    return Labels(labels, found.skipped)


def _of_single_classes(names, folder, form):
    """Finds labels of which each class has a file; classes without a file have no pixels."""
    files, skipped = {}, []
    for name, train_id in names.train_ids.items():
        of_class = Path(str(folder).replace(CLASS, name))
        suffix = form.suffix.replace(CLASS, name)
        found = picture_files.find(of_class, [suffix])
        skipped += found.skipped
        for stem, file in by_stem(of_class, found.names, [suffix]).items():
            files.setdefault(stem, {})[of_class / file] = train_id
    labels = {
        stem: [(ClassFilesLabel(PurePosixPath(stem).name, of_stem, names.background), form)]
        for stem, of_stem in files.items()
    }
    return Labels(labels, skipped)


def by_stem(folder: Path, names: Iterable[str], suffixes: Sequence[str]) -> dict[str, str]:
    """Returns the names that end with one of the suffixes, by their stem, in the given order.

    Raises:
      DataError: if two files have one stem.
    """
    found = {}
    for name in names:
        stem = picture_files.without_suffix(name, suffixes)
        if stem == name:
            continue
        if stem in found:
            raise DataError(
                f"{folder / found[stem]} and {folder / name} have the same name; a label could"
                " belong to either. Remove or rename one of them."
            )
        found[stem] = name
    return found
