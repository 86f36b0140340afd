"""Finds the labels of a split: pictures, annotations of single images, or one file for all."""

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxseg.data import picture_files
from jaxseg.data.annotations import coco
from jaxseg.data.annotations.class_files import ClassFilesLabel
from jaxseg.data.annotations.drawn_label import DrawnLabel
from jaxseg.data.datasets.description import (
    EACH_CLASS,
    ClassNames,
    Dataset,
    LabelFormat,
    is_coco_file,
)
from jaxseg.data.decoding.pictures import PictureFile
from jaxseg.data.picture_files import Skipped
from jaxseg.errors import DataError


class Labels(NamedTuple):
    """The labels of a split.

    Attributes:
      by_stem: the labels for each image path without its suffix, the preferred one first.
      skipped: files and folders that are not read, and why.
      unlisted: masks of single classes that are not among the classes: the name of the class and
        the mask, for each image path without its suffix.
    """

    by_stem: Mapping[str, Sequence[tuple[PictureFile, LabelFormat]]]
    skipped: list[Skipped]
    unlisted: Mapping[str, tuple[str, Path]] = {}

    def files(self) -> set[Path]:
        """Returns all files that a label lies in or is drawn from."""
        found = set()
        for labels in self.by_stem.values():
            for label, _ in labels:
                if isinstance(label, DrawnLabel):
                    found.update(label.files)
                elif isinstance(label, Path):
                    found.add(label)
        return found


def find(dataset: Dataset, folder: Path) -> Labels:
    """Finds the labels of a dataset.

    Args:
      dataset: the dataset.
      folder: the folder of the labels, or the JSON file that holds all of them.

    Raises:
      DataError: if two labels have the same name, the JSON file cannot be read, or a folder is
        named as none of the classes.
    """
    first, names = dataset.label_formats[0], dataset.class_names
    if names and is_coco_file(folder):
        labels = coco.labels(folder, names)
        stems = {picture_files.without_suffix(name): label for name, label in labels.items()}
        if len(stems) < len(labels):
            raise DataError(f"{folder} lists images of the same name; a label could belong to each")
        return Labels({stem: [(label, first)] for stem, label in stems.items()}, [])
    suffixes = [form.suffix for form in dataset.label_formats]
    if names and EACH_CLASS in str(folder):
        return _in_folders(names, folder, suffixes, first)
    if names and EACH_CLASS in first.suffix:
        return _by_suffixes(names, folder, suffixes, first)
    found = picture_files.find(folder, suffixes)
    labels = {}
    for form in dataset.label_formats:
        for stem, name in by_stem(folder, found.names, [form.suffix]).items():
            file = folder / name
            label = form.opened(file) if form.opened else file
            labels.setdefault(stem, []).append((label, form))
    return Labels(labels, found.skipped)


def class_folders(pattern: Path) -> dict[str, Path]:
    """Returns the folders that fit a pattern with `EACH_CLASS`, by the name of the class."""
    before, _, after = str(pattern).partition(EACH_CLASS)
    found = glob.glob(f"{glob.escape(before)}*{glob.escape(after)}")
    folders = {path[len(before) : len(path) - len(after)]: Path(path) for path in sorted(found)}
    return {
        name: folder
        for name, folder in folders.items()
        if folder.is_dir() and name.lower() not in picture_files.LEFTOVERS
    }


def _in_folders(names, pattern, suffixes, form):
    """Finds labels whose masks lie in a folder for each class."""
    masks, skipped = {}, []
    for name, folder in class_folders(pattern).items():
        found = picture_files.find(folder, suffixes)
        skipped += found.skipped
        for stem, file in by_stem(folder, found.names, suffixes).items():
            masks.setdefault(stem, {})[folder / file] = names.train_id(name, folder)
    return Labels(_of_single_classes(masks, names, form), skipped)


def _by_suffixes(names, folder, suffixes, form):
    """Finds labels whose masks lie in one folder, with a suffix for each class."""
    masks, skipped, unlisted = {}, [], {}
    for suffix in suffixes:
        before, _, after = suffix.partition(EACH_CLASS)
        found = picture_files.find(folder, [after])
        skipped += found.skipped
        for file in found.names:
            stem = file[: len(file) - len(after)]
            # The longest name counts: street_sign, not sign.
            ends = [name for name in names.train_ids if stem.endswith(before + name)]
            if ends:
                name = max(ends, key=len)
                image = stem[: len(stem) - len(before + name)]
                masks.setdefault(image, {})[folder / file] = names.train_ids[name]
            elif before and before in stem:
                image, _, name = stem.rpartition(before)
                unlisted[image] = name, folder / file
    return Labels(_of_single_classes(masks, names, form), skipped, unlisted)


def _of_single_classes(masks, names: ClassNames, form):
    """Returns labels of which each class has a mask; those of later classes cover others."""
    return {
        stem: [
            (
                ClassFilesLabel(
                    PurePosixPath(stem).name,
                    dict(sorted(of_stem.items(), key=lambda pair: (pair[1], pair[0]))),
                    names.background,
                ),
                form,
            )
        ]
        for stem, of_stem in masks.items()
    }


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
