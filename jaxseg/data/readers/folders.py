"""Reads datasets as folders of files, in the layouts of their releases."""

import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from jaxseg.data import picture_files
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.description import CUSTOM, EACH_CLASS, Dataset, is_coco_file
from jaxseg.data.picture_files import Skipped
from jaxseg.data.readers import label_files
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
    label_dir = next((folder for folder in label_dirs if folder.exists()), label_dirs[0])
    images = picture_files.find(image_dir, dataset.image_suffixes)
    if not images.names:
        remedy = (
            "Set data.root (data.val_root, if evaluation has a root of its own) to the folder "
            "that holds these"
        )
        if dataset.name == CUSTOM:
            remedy += (
                ", or set data.images and data.image_suffix to what was found. Without images for"
                " validation, set data.val_share, such as 0.1"
            )
        if dataset is CITYSCAPES:
            remedy += f", or generate street scenes there: jaxseg synth --output {root}"
        raise DataError(
            f"No {dataset.name} images of the split {split!r} under {root}\n"
            f"{_expected_and_found(dataset, root, splits, image_dir)}\n"
            + "".join(f"{line}\n" for line in picture_files.describe(images.skipped))
            + remedy
        )

    labels = label_files.find(dataset, label_dir) if labeled or image_dir == label_dir else None
    if labels and image_dir == label_dir and not dataset.image_suffix:
        files = labels.files()
        names = [name for name in images.names if image_dir / name not in files]
        if not names:
            suffixes = " or ".join(f"*{form.suffix}" for form in dataset.label_formats)
            raise DataError(
                f"All {len(images.names)} pictures in {image_dir} end as labels do ({suffixes}), so"
                " none is an image. Set config.data.label_suffix to what only labels end with, such"
                " as _mask.png"
            )
        images = images._replace(names=names)
    reason = f"it does not end with {' or '.join(dataset.image_suffixes)}"
    skipped = images.skipped + [Skipped(file, reason) for file in images.others]
    # The image of each stem, the path without its suffix.
    image_names = label_files.by_stem(image_dir, images.names, dataset.image_suffixes)
    stems = list(image_names)
    if dataset.split_list:
        stems = _listed(dataset, root, split, splits, image_names)
    elif dataset.division and dataset.division.covers(split):
        chosen = dataset.division.chosen([image_names[stem] for stem in stems], split)
        stems = [stem for stem, taken in zip(stems, chosen, strict=True) if taken]
    if not labeled or labels is None:
        files = ((image_dir / image_names[stem], PurePosixPath(stem).name) for stem in stems)
        return [NamedSample(name, file, file, None) for file, name in files], [], [], skipped
    by_stem = labels.by_stem
    if is_coco_file(label_dir):
        by_stem = _below(dataset.image_folder(split), by_stem, image_names)
    samples, unlabeled = [], []
    for stem in stems:
        image = image_dir / image_names[stem]
        if dataset.class_names and stem in labels.unlisted:
            dataset.class_names.train_id(*labels.unlisted[stem])
        if stem in by_stem:
            label, form = by_stem[stem][0]
            samples.append(NamedSample(PurePosixPath(stem).name, image, label, form))
        else:
            unlabeled.append(image)
    if unlabeled and complete:
        raise DataError(
            f"{len(unlabeled)} of {len(stems)} {dataset.name} images of the split {split!r} "
            f"have no label:{first_few(unlabeled)}\n"
            f"{_expected_and_found(dataset, root, splits, label_dir)}\n"
            f"{_listed_by(label_dir, by_stem)}"
            f"{dataset.label_origin} Unpack them into the same root, or remove the images without "
            "labels. (--mode eval --format-only needs no labels.)"
        )
    # A file may be the label of one image by one format, and of another image by another one.
    used, alone = set(), {}
    for stem, found in by_stem.items():
        for label, _ in found:
            if stem in image_names:
                used.add(str(label))
            else:
                alone[str(label)] = label
    alone = [label for name, label in sorted(alone.items()) if name not in used]
    return samples, unlabeled, alone, skipped + labels.skipped


def _below(image_folder, by_stem, image_names):
    """Returns the labels of a COCO file by image paths below the folder of the images.

    The file may name images by paths that begin with that folder, or with its last part.
    """
    prefixes = f"{image_folder.rstrip('/')}/", f"{PurePosixPath(image_folder).name}/"
    found = {}
    for stem, labels in by_stem.items():
        forms = [stem, *(stem.removeprefix(prefix) for prefix in prefixes)]
        found[next((form for form in forms if form in image_names), stem)] = labels
    return found


def _listed_by(label_dir, by_stem):
    """Returns a line with the images that a COCO file names, for messages."""
    return f"{label_dir} names{first_few(list(by_stem))}\n" if is_coco_file(label_dir) else ""


def _listed(dataset, root, split, splits, image_names) -> list[str]:
    """Returns the stems of a split in the order of its list.

    A line names an image below its folder or below the root, with or without its suffix. A listed
    image that is not among `image_names` is a DataError.
    """
    path = root / dataset.split_list_file(split)
    if not path.is_file():
        raise DataError(
            f"No list of the {dataset.name} split {split!r}: {path}\n"
            f"{_expected_and_found(dataset, root, splits, path.parent)}\n{dataset.label_origin}"
        )
    lines = path.read_text(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path} names no images of {dataset.name}. Restore it.")
    folder = f"{dataset.image_folder(split).rstrip('/')}/"
    listed = []
    for line in lines:
        forms = [line, picture_files.without_suffix(line)]
        forms += [form.removeprefix(folder) for form in forms]
        listed.append(next((form for form in forms if form in image_names), None))
    missing = [line for line, stem in zip(lines, listed, strict=True) if stem is None]
    if missing:
        image_dir = root / dataset.image_folder(split)
        files = [
            image_dir / (picture_files.without_suffix(name) + dataset.image_suffixes[0])
            for name in missing
        ]
        raise DataError(
            f"{len(missing)} of {len(listed)} {dataset.name} images of the split {split!r} are "
            f"missing:{first_few(files)}\n"
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
    paths = [root, *reversed([f for f in (wanted, *wanted.parents) if root in f.parents])]
    return "\n".join(f"  {_described(path, limit)}" for path in paths)


def _described(path: Path, limit: int) -> str:
    if path.is_dir():
        return f"{path}/ holds {_names(path, limit)}"
    if EACH_CLASS in path.name:
        return f"{path}/ is there for {', '.join(label_files.class_folders(path)) or 'no class'}"
    return f"{path} is a file" if path.is_file() else f"{path}/ is missing"


def _names(folder: Path, limit: int) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
