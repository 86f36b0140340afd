"""Reads datasets as folders of files, in the layouts of their releases."""

import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from jaxseg.data import picture_files
from jaxseg.data.datasets import custom
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.picture_files import Skipped
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
    """Returns (samples, images alone, labels alone, skipped files) of one split.

    `splits` are all the requested splits, for messages.
    """
    image_dir = root / dataset.image_folder(split)
    label_dirs = [root / folder for folder in dataset.label_folders(split)]
    label_dir = next((folder for folder in label_dirs if folder.is_dir()), label_dirs[0])
    images = picture_files.find(image_dir, dataset.image_suffixes)
    if not images.names:
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
            f"{_expected_and_found(dataset, root, splits, image_dir)}\n"
            + "".join(f"{line}\n" for line in picture_files.describe(images.skipped))
            + remedy
        )

    suffixes = [form.suffix for form in dataset.label_formats]
    if image_dir == label_dir and not dataset.image_suffix:
        labels_there = set(picture_files.find(label_dir, suffixes).names)
        images = images._replace(names=[name for name in images.names if name not in labels_there])
    reason = f"it does not end with {' or '.join(dataset.image_suffixes)}"
    skipped = images.skipped + [Skipped(file, reason) for file in images.others]
    # The image of each stem, the path without its suffix.
    image_names = _by_stem(image_dir, images.names, dataset.image_suffixes)
    stems = list(image_names)
    if dataset.split_list:
        stems = _listed(dataset, root, split, splits, image_names)
    if not labeled:
        files = ((image_dir / image_names[stem], PurePosixPath(stem).name) for stem in stems)
        return [NamedSample(name, file, file, None) for file, name in files], [], [], skipped
    labels = picture_files.find(label_dir, suffixes)
    samples, unlabeled = [], []
    label_names = {
        form.suffix: _by_stem(label_dir, labels.names, [form.suffix])
        for form in dataset.label_formats
    }
    for stem in stems:
        image = image_dir / image_names[stem]
        for form in dataset.label_formats:
            if label := label_names[form.suffix].get(stem):
                name = PurePosixPath(stem).name
                samples.append(NamedSample(name, image, label_dir / label, form))
                break
        else:
            unlabeled.append(image)
    if unlabeled and complete:
        raise DataError(
            f"{len(unlabeled)} of {len(stems)} {dataset.name} images of the split {split!r} "
            f"have no label:{first_few(unlabeled)}\n"
            f"{_expected_and_found(dataset, root, splits, label_dir)}\n"
            f"{dataset.label_origin} Unpack them into the same root, or remove the images without "
            "labels. (--mode eval --format-only needs no labels.)"
        )
    used = {
        label
        for by_stem in label_names.values()
        for stem, label in by_stem.items()
        if stem in image_names
    }
    alone = [label_dir / name for name in labels.names if name not in used]
    return samples, unlabeled, alone, skipped + labels.skipped


def _by_stem(folder, names, suffixes) -> dict[str, str]:
    """Returns the names that end with one of the suffixes, by their stem, in the given order.

    Two files with one stem are a DataError.
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


def _listed(dataset, root, split, splits, image_names) -> list[str]:
    """Returns the stems of a split in the order of its list.

    A listed stem that is not among `image_names` is a DataError.
    """
    path = root / dataset.split_list_file(split)
    if not path.is_file():
        raise DataError(
            f"No list of the {dataset.name} split {split!r}: {path}\n"
            f"{_expected_and_found(dataset, root, splits, path.parent)}\n{dataset.label_origin}"
        )
    lines = path.read_text(errors="replace").splitlines()
    listed = [line.strip() for line in lines if line.strip()]
    if not listed:
        raise DataError(f"{path} names no images of {dataset.name}. Restore it.")
    missing = [stem + dataset.image_suffixes[0] for stem in listed if stem not in image_names]
    if missing:
        image_dir = root / dataset.image_folder(split)
        raise DataError(
            f"{len(missing)} of {len(listed)} {dataset.name} images of the split {split!r} are "
            f"missing:{first_few([image_dir / name for name in missing])}\n"
            f"{path} names them. Add the missing images, or remove these lines from the list."
        )
    return listed


def _expected_and_found(dataset: Dataset, root: Path, splits: Sequence[str], wanted: Path) -> str:
    return f"Expected:\n{dataset.expected_tree(root, splits)}\nFound:\n{_listing(root, wanted)}"


def _listing(root: Path, wanted: Path, limit: int = 6) -> str:
    """Lists the folders from `root` down to `wanted`, each with the first few names in it."""
    if not root.is_dir():
        parent = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
        at = f"{parent}/".replace("//", "/")
        return f"  {root} does not exist\n  {at} holds {_names(parent, limit)}"
    folders = [root, *reversed([f for f in (wanted, *wanted.parents) if root in f.parents])]
    return "\n".join(
        f"  {folder}/ " + (f"holds {_names(folder, limit)}" if folder.is_dir() else "is missing")
        for folder in folders
    )


def _names(folder: Path, limit: int) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
