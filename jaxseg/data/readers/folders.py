"""Reads datasets as folders of files, in the layouts of their releases."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from jaxseg.data.datasets import custom
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.samples import NamedSample, Pairs
from jaxseg.errors import DataError, first_few


def pairs(
    dataset: Dataset, root: Path, splits: Sequence[str], *, labeled: bool, complete: bool
) -> Pairs:
    """Finds the images and labels below `root`, one split after the other.

    Args:
      labeled: False ignores all labels, whether or not there are any.
      complete: True also raises a DataError for an image without a label.

    Raises:
      DataError: if a split has no images, if the list that names them is missing, or if listed
        images are missing. The message shows the expected folders and what was found instead.
    """
    parts = [_pairs_of_split(dataset, root, split, splits, labeled, complete) for split in splits]
    return Pairs(*(tuple(itertools.chain(*lists)) for lists in zip(*parts, strict=True)))


def _pairs_of_split(dataset, root, split, splits, labeled, complete):
    """Returns (samples, images alone, labels alone) of one split.

    `splits` are all the requested splits, for messages.
    """
    image_dir = root / dataset.image_folder(split)
    label_dirs = [root / folder for folder in dataset.label_folders(split)]
    label_dir = next((folder for folder in label_dirs if folder.is_dir()), label_dirs[0])
    image_names = _files_below(image_dir, dataset.image_suffix)
    if not image_names:
        remedy = (
            "Set data.root (data.val_root, if evaluation has a root of its own) to the folder "
            "that holds these"
        )
        if dataset.name == custom.NAME:
            remedy += ", or set data.images and data.image_suffix to what was found"
        if dataset is CITYSCAPES:
            remedy += f", or generate street scenes there: jaxseg synth --output {root}"
        raise DataError(
            f"No {dataset.name} images of the split {split!r} under {root}\n"
            f"{_expected_and_found(dataset, root, splits, image_dir)}\n{remedy}"
        )

    every_image = set(image_names)
    if dataset.split_list:
        image_names = _listed(dataset, root, split, splits, image_names)
    if not labeled:
        images = [image_dir / name for name in image_names]
        samples = [
            NamedSample(i.name.removesuffix(dataset.image_suffix), i, i, None) for i in images
        ]
        return samples, [], []
    suffixes = tuple(form.suffix for form in dataset.label_formats)
    label_names = set(_files_below(label_dir, suffixes))
    samples, unlabeled = [], []
    for image_name in image_names:
        stem = image_name.removesuffix(dataset.image_suffix)
        for form in dataset.label_formats:
            if stem + form.suffix in label_names:
                label = label_dir / (stem + form.suffix)
                samples.append(NamedSample(Path(stem).name, image_dir / image_name, label, form))
                break
        else:
            unlabeled.append(image_name)
    if unlabeled and complete:
        raise DataError(
            f"{len(unlabeled)} of {len(image_names)} {dataset.name} images of the split {split!r} "
            f"have no label:{first_few([image_dir / name for name in unlabeled])}\n"
            f"{_expected_and_found(dataset, root, splits, label_dir)}\n"
            f"{dataset.label_origin} Unpack them into the same root, or remove the images without "
            "labels. (--mode eval --format-only needs no labels.)"
        )
    alone = [
        label_dir / name
        for name in sorted(label_names)
        if not any(
            name.removesuffix(suffix) + dataset.image_suffix in every_image
            for suffix in suffixes
            if name.endswith(suffix)
        )
    ]
    return samples, [image_dir / name for name in unlabeled], alone


def _listed(dataset, root, split, splits, image_names) -> list[str]:
    """Returns the image names of a split in the order of its list.

    A listed name that is not among `image_names` is a DataError.
    """
    path = root / dataset.split_list_file(split)
    if not path.is_file():
        raise DataError(
            f"No list of the {dataset.name} split {split!r}: {path}\n"
            f"{_expected_and_found(dataset, root, splits, path.parent)}\n{dataset.label_origin}"
        )
    lines = path.read_text(errors="replace").splitlines()
    listed = [line.strip() + dataset.image_suffix for line in lines if line.strip()]
    if not listed:
        raise DataError(f"{path} names no images of {dataset.name}. Restore it.")
    known = set(image_names)
    missing = [name for name in listed if name not in known]
    if missing:
        image_dir = root / dataset.image_folder(split)
        raise DataError(
            f"{len(missing)} of {len(listed)} {dataset.name} images of the split {split!r} are "
            f"missing:{first_few([image_dir / name for name in missing])}\n"
            f"{path} names them. Add the missing images, or remove these lines from the list."
        )
    return listed


def _files_below(folder: Path, suffix: str | tuple[str, ...]) -> list[str]:
    """Returns the sorted paths of files relative to `folder`.

    Symbolic links are followed, and hidden files are skipped.
    """
    return sorted(
        (Path(directory) / name).relative_to(folder).as_posix()
        for directory, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    )


def _expected_and_found(dataset: Dataset, root: Path, splits: Sequence[str], wanted: Path) -> str:
    return f"Expected:\n{dataset.expected_tree(root, splits)}\nFound:\n{_listing(root, wanted)}"


def _listing(root: Path, wanted: Path, limit: int = 6) -> str:
    """Lists the folders from `root` down to `wanted`, each with the first few names in it."""
    if not root.is_dir():
        parent = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
        return f"  {root} does not exist\n  {parent}/ holds {_names(parent, limit)}"
    folders = [root, *reversed([f for f in (wanted, *wanted.parents) if root in f.parents])]
    return "\n".join(
        f"  {folder}/ " + (f"holds {_names(folder, limit)}" if folder.is_dir() else "is missing")
        for folder in folders
    )


def _names(folder: Path, limit: int) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
