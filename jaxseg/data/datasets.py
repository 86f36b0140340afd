"""Datasets on disk: where the files of each lie, and reading them.

A `Dataset` is plain description (`jaxseg.data.description`). `find_samples` turns it and a folder
into pairs of files, and `read_sample` turns a pair into arrays. Whatever does not fit is a
`DataError` that names the file.
"""

import contextlib
import io
import itertools
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxseg.data import custom
from jaxseg.data.ade20k import ADE20K
from jaxseg.data.chase_db1 import CHASE_DB1
from jaxseg.data.cityscapes import CITYSCAPES
from jaxseg.data.coco_stuff import COCO_STUFF_10K, COCO_STUFF_164K
from jaxseg.data.description import IGNORE, UNKNOWN, Dataset, LabelFormat
from jaxseg.data.mapillary import (
    MAPILLARY_65,
    MAPILLARY_66,
    MAPILLARY_TO_CITYSCAPES,
    MAPILLARY_TO_CITYSCAPES_STRICT,
)
from jaxseg.data.nyu_depth_v2 import NYU_DEPTH_V2
from jaxseg.data.pascal_context import PASCAL_CONTEXT_59, PASCAL_CONTEXT_60
from jaxseg.data.potsdam import POTSDAM
from jaxseg.errors import ConfigError, CorruptFileError, DataError

DATASETS = {
    dataset.name: dataset
    for dataset in (
        ADE20K,
        CHASE_DB1,
        CITYSCAPES,
        COCO_STUFF_10K,
        COCO_STUFF_164K,
        MAPILLARY_65,
        MAPILLARY_66,
        MAPILLARY_TO_CITYSCAPES,
        MAPILLARY_TO_CITYSCAPES_STRICT,
        NYU_DEPTH_V2,
        PASCAL_CONTEXT_59,
        PASCAL_CONTEXT_60,
        POTSDAM,
    )
}


@dataclass(frozen=True)
class Sample:
    """One image and its label, as files. `name` is the image's file name without its suffix.

    Where there is no label, it is the image again, without a format; it reads as all ignored.
    """

    name: str
    image: Path
    label: Path
    label_format: LabelFormat | None


@dataclass(frozen=True)
class Source:
    """Where samples come from: a dataset, the folder it lies in, and a split or several.

    labelled: False leaves labels aside, whether there are any or not.
    """

    dataset: Dataset
    root: str
    split: str
    labelled: bool = True

    def samples(self) -> tuple[Sample, ...]:
        """All samples, in the reference's order: that of the list that names them, or of their
        image paths; of several splits, as in "train+train_extra", one after the other.

        Raises DataError where there are no images, no list, listed images that are missing, or
        images without a label: with the folders expected and what was found in their place.
        """
        return self.pairs(complete=True).samples

    def pairs(self, *, complete: bool = False) -> "Pairs":
        """What there is; with `complete`, an image without a label is a DataError, too."""
        root, splits = Path(self.root), self.split.split("+")
        parts = [_pairs_of_split(self, root, split, splits, complete) for split in splits]
        return Pairs(*(tuple(itertools.chain(*lists)) for lists in zip(*parts, strict=True)))

    def __str__(self) -> str:
        return f"{self.dataset.name} in {self.root}, {self.split}"


@dataclass(frozen=True)
class Pairs:
    """Images with their labels, and the files on either side that have no counterpart."""

    samples: tuple[Sample, ...]
    images_alone: tuple[Path, ...]
    labels_alone: tuple[Path, ...]


def trained_on(config) -> Source:
    """config: has dataset, root and train_split."""
    return Source(_described(config.dataset, config), config.root, config.train_split)


def evaluated_on(config) -> Source:
    """config: has dataset, root and val_split; val_dataset and val_root, unless they are empty, go
    before the first two."""
    dataset = _described(config.val_dataset or config.dataset, config)
    return Source(dataset, config.val_root or config.root, config.val_split)


def _described(name: str, config) -> Dataset:
    return custom.describe(config) if name == custom.NAME else get(name)


def get(name: str) -> Dataset:
    """The dataset of that name. Raises ConfigError with the known names."""
    if name not in DATASETS:
        known = ", ".join([*DATASETS, f"{custom.NAME} (configs/custom.py)"])
        raise ConfigError(f"Unknown dataset {name!r}. Known: {known}.")
    return DATASETS[name]


def find_samples(dataset_name: str, root: str | os.PathLike, split: str) -> tuple[Sample, ...]:
    """The samples of a dataset by its name, as `Source.samples` gives them."""
    return Source(get(dataset_name), os.fspath(root), split).samples()


def _pairs_of_split(source, root, split, splits, complete):
    """(samples, images alone, labels alone). `splits` are all that are wanted, for messages."""
    dataset = source.dataset
    image_dir = root / dataset.image_folder(split)
    label_dirs = [root / folder for folder in dataset.label_folders(split)]
    label_dir = next((folder for folder in label_dirs if folder.is_dir()), label_dirs[0])
    image_names = _files_below(image_dir, dataset.image_suffix)
    if not image_names:
        remedy = (
            "Set data.root (data.val_root, where evaluation has a root of its own) to the folder "
            "that holds these"
        )
        if dataset is CITYSCAPES:
            remedy += (
                ", or have street scenes made up there: "
                f"python -m jaxseg.data.synthetic --output {root}"
            )
        raise DataError(
            f"No {dataset.name} images of the split {split!r} under {root}\n"
            f"{_expected_and_found(dataset, root, splits, image_dir)}\n{remedy}"
        )

    every_image = set(image_names)
    if dataset.split_list:
        image_names = _listed(dataset, root, split, splits, image_names)
    if not source.labelled:
        images = [image_dir / name for name in image_names]
        samples = [Sample(i.name.removesuffix(dataset.image_suffix), i, i, None) for i in images]
        return samples, [], []
    suffixes = tuple(form.suffix for form in dataset.label_formats)
    label_names = set(_files_below(label_dir, suffixes))
    samples, unlabelled = [], []
    for image_name in image_names:
        stem = image_name.removesuffix(dataset.image_suffix)
        for form in dataset.label_formats:
            if stem + form.suffix in label_names:
                label = label_dir / (stem + form.suffix)
                samples.append(Sample(Path(stem).name, image_dir / image_name, label, form))
                break
        else:
            unlabelled.append(image_name)
    if unlabelled and complete:
        raise DataError(
            f"{len(unlabelled)} of {len(image_names)} {dataset.name} images of the split {split!r} "
            f"have no label:{first_few([image_dir / name for name in unlabelled])}\n"
            f"{_expected_and_found(dataset, root, splits, label_dir)}\n"
            f"{dataset.label_origin} Unpack them into the same root, or take the images without "
            "labels away. (--mode eval --format-only needs none.)"
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
    return samples, [image_dir / name for name in unlabelled], alone


def _listed(dataset, root, split, splits, image_names) -> list[str]:
    """The image names of a split as its list has them; they are among `image_names`."""
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
            f"{path} names them. Complete the images, or take these lines out of it."
        )
    return listed


def read_image(path: Path) -> np.ndarray:
    """uint8 [h, w, 3], BGR. Raises CorruptFileError."""
    image = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise _corrupt(path, "it is not an image that OpenCV can decode")
    return image


def image_hw(path: Path) -> tuple[int, int]:
    """The size that `read_image` gives, from the file's header alone. Raises CorruptFileError."""
    with _opened(path, path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)


def label_hw(sample: Sample) -> tuple[int, int]:
    """The size that `read_label` gives, from a header alone. Raises CorruptFileError."""
    if sample.label_format is None:
        return image_hw(sample.image)
    with _opened(sample.label, sample.label) as picture:
        return picture.height, picture.width


def read_label(sample: Sample) -> np.ndarray:
    """uint8 [h, w] of train ids, 255 = ignore.

    Raises CorruptFileError, or DataError where the values are not those of the dataset.
    """
    if sample.label_format is None:
        return np.full(read_image(sample.image).shape[:2], IGNORE, np.uint8)
    raw = read_raw_label(sample.label)
    label = cv2.LUT(raw, sample.label_format.train_ids)
    unknown = label == UNKNOWN
    if unknown.any():
        known = np.flatnonzero(sample.label_format.train_ids != UNKNOWN)
        raise DataError(
            f"{sample.label} holds the label values {ranges(np.unique(raw[unknown]))}, which do not"
            f" exist in files of the kind *{sample.label_format.suffix} (known: {ranges(known)})."
            " Is the file from another dataset, or already mapped? Restore it, or rename it to the"
            " kind that it is."
        )
    return label


def read_raw_label(path: Path) -> np.ndarray:
    """uint8 [h, w] of the values as stored: grey ones of 1 to 16 bits, or indices of a palette.

    Raises CorruptFileError, or DataError where there is not one value from 0 to 255 per pixel.
    """
    # Pillow, since OpenCV would turn the indices of a palette picture into colours. It does not
    # turn pictures by their metadata either, which is as the reference reads labels.
    with _opened(path, io.BytesIO(read_bytes(path))) as picture:
        raw = np.array(picture)
    if raw.ndim != 2:
        raise DataError(
            f"{path} is no label: it has the shape {raw.shape}, where one value per pixel, [h, w],"
            " is needed. Colour pictures of labels will not do; use the label ids as the dataset"
            " ships them."
        )
    if raw.dtype != np.uint8 and (raw.min() < 0 or raw.max() > 255):
        raise DataError(
            f"{path} is no label: it holds values from {raw.min()} to {raw.max()}, where those of"
            " labels are from 0 to 255. Is it a map of instances or of depth?"
        )
    return raw.astype(np.uint8, copy=False)


def read_sample(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [h, w, 3] (BGR) and label uint8 [h, w] (train ids) of the same size.

    Raises what `read_image` and `read_label` do, and DataError where the sizes differ.
    """
    image, label = read_image(sample.image), read_label(sample)
    if image.shape[:2] != label.shape:
        raise DataError(
            f"An image and its label differ in size (height, width):\n"
            f"  {sample.image}: {image.shape[:2]}\n"
            f"  {sample.label}: {label.shape}\n"
            "Replace the one that was resized or mixed up (an image is turned as its EXIF data "
            "say, a label is not)."
        )
    return image, label


@contextlib.contextmanager
def _opened(path, file):
    """The picture in a file; what goes wrong with it inside is a CorruptFileError."""
    try:
        with Image.open(file) as picture:
            yield picture
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise _corrupt(path, str(error)) from error


def read_bytes(path: Path) -> bytes:
    """The content of a picture file that is whole, by its checksums. Raises CorruptFileError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _corrupt(path, error.strerror or str(error)) from error
    if not content:
        raise _corrupt(path, "it is empty")
    if fault := _fault(content):
        raise _corrupt(path, fault)
    return content


def _fault(content: bytes) -> str | None:
    """What is wrong with a picture file, as far as its bytes tell.

    Decoders differ in what they do with a damaged file, down to returning a partly grey picture.
    """
    if content.startswith(b"\x89PNG"):
        return _png_fault(content)
    # JPEG has no checksums, but the last "start of scan" is followed by an "end of image".
    if content.startswith(b"\xff\xd8") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        return f"it ends early, after {len(content)} bytes"
    return None


def _png_fault(content: bytes) -> str | None:
    """By the checksums that a PNG file carries (2 ms for a full-size one)."""
    position = 8
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            break
        # The checksum covers the chunk's name and data, not its length.
        if zlib.crc32(content[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            return f"its {kind.decode('latin-1')} block at byte {position} fails its checksum"
        if kind == b"IEND":
            return None
        position = end
    return f"it ends early, after {len(content)} bytes"


def _corrupt(path: Path, why: str) -> CorruptFileError:
    return CorruptFileError(f"{path} cannot be read: {why}")


def _files_below(folder: Path, suffix: str | tuple[str, ...]) -> list[str]:
    """Paths relative to `folder`, sorted; symbolic links are followed, hidden files passed over."""
    return sorted(
        (Path(directory) / name).relative_to(folder).as_posix()
        for directory, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    )


def first_few(lines: Sequence[object], limit: int = 5) -> str:
    """A line each for the first, and one for how many there are besides."""
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    return shown + (f"\n  and {len(lines) - limit} more" if len(lines) > limit else "")


def _expected_and_found(dataset: Dataset, root: Path, splits: Sequence[str], wanted: Path) -> str:
    return f"Expected:\n{dataset.expected_tree(root, splits)}\nFound:\n{_listing(root, wanted)}"


def _listing(root: Path, wanted: Path, limit: int = 6) -> str:
    """The folders from `root` on the way to `wanted`, each with the first few names in it."""
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


def ranges(values: np.ndarray) -> str:
    """'0-18, 255' for 0, 1, … 18, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
