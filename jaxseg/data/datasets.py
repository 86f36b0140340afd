"""Datasets on disk: their classes, colours and label values, where the files lie, and reading them.

A `Dataset` is plain description. `find_samples` turns it and a folder into pairs of files, and
`read_sample` turns a pair into arrays. Whatever does not fit is a `DataError` that names the file.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxseg.errors import ConfigError, CorruptFileError, DataError

IGNORE = 255
UNKNOWN = 254  # in a label table: no such raw value exists, so meeting one is an error


@dataclass(frozen=True, eq=False)
class LabelFormat:
    """One way in which a dataset's labels are stored.

    suffix: takes the place of the image suffix in the file name.
    train_ids: uint8 [256], raw value -> class index, `IGNORE` or `UNKNOWN`.
    """

    suffix: str
    train_ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a dataset means and how its folders are laid out.

    classes: the K class names; index = train id.
    palette: uint8 [K, 3], RGB.
    images, labels: folders below the root, with `{split}`; files are found in them recursively.
    label_formats: in order of preference; the first whose file exists is read.
    """

    name: str
    classes: tuple[str, ...]
    palette: np.ndarray
    images: str
    image_suffix: str
    labels: str
    label_formats: tuple[LabelFormat, ...]

    def expected_tree(self, root: Path, split: str) -> str:
        """The folders and files that belong below `root`, as text for messages."""
        label_names = " or ".join(f"*{form.suffix}" for form in self.label_formats)
        return (
            f"  {root}/\n"
            f"    {self.images.format(split=split)}/<city>/*{self.image_suffix}\n"
            f"    {self.labels.format(split=split)}/<city>/{label_names}"
        )


@dataclass(frozen=True)
class Sample:
    """One image and its label, as files. `name` is the image's file name without its suffix."""

    name: str
    image: Path
    label: Path
    label_format: LabelFormat


def label_table(train_ids: dict[int, int]) -> np.ndarray:
    """uint8 [256]: the given raw values; 255 is ignored, everything else `UNKNOWN`."""
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(train_ids)] = list(train_ids.values())
    # 255 is "ignore" in ready-made labels, and what the id -1 (licence plate) becomes in uint8.
    table[255] = IGNORE
    table.flags.writeable = False
    return table


def colours(*rgb: tuple[int, int, int]) -> np.ndarray:
    palette = np.array(rgb, np.uint8)
    palette.flags.writeable = False
    return palette


# The raw id of each of the 19 classes; the other ids from 0 to 33 exist and are ignored.
# Cordts et al., arXiv:1604.01685, and the label table that is published with the dataset.
CITYSCAPES_RAW_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

CITYSCAPES = Dataset(
    name="cityscapes",
    classes=(
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
        *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"),
        *("bus", "train", "motorcycle", "bicycle"),
    ),
    palette=colours(
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
        *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
        *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
        *((0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ),
    images="leftImg8bit/{split}",
    image_suffix="_leftImg8bit.png",
    labels="gtFine/{split}",
    label_formats=(
        LabelFormat("_gtFine_labelTrainIds.png", label_table({k: k for k in range(19)})),
        LabelFormat(
            "_gtFine_labelIds.png",
            label_table(
                dict.fromkeys(range(34), IGNORE)
                | {raw: train_id for train_id, raw in enumerate(CITYSCAPES_RAW_IDS)}
            ),
        ),
    ),
)

DATASETS = {dataset.name: dataset for dataset in (CITYSCAPES,)}


def get(name: str) -> Dataset:
    """The dataset of that name. Raises ConfigError with the known names."""
    if name not in DATASETS:
        raise ConfigError(f"Unknown dataset {name!r}. Known: {', '.join(DATASETS)}.")
    return DATASETS[name]


def find_samples(dataset_name: str, root: str | os.PathLike, split: str) -> tuple[Sample, ...]:
    """All samples of a split, in the order of their image paths (the reference's order).

    Raises DataError where there are no images, or images without a label: with the folders
    expected and what was found in their place.
    """
    dataset, root = get(dataset_name), Path(root)
    image_dir = root / dataset.images.format(split=split)
    label_dir = root / dataset.labels.format(split=split)
    image_names = _files_below(image_dir, dataset.image_suffix)
    if not image_names:
        raise DataError(
            f"No {dataset.name} images of the split {split!r} under {root}\n"
            f"{_expected_and_found(dataset, root, split, image_dir)}\n"
            "Set data.root to the folder that holds these, or have street scenes made up there: "
            f"python -m jaxseg.data.synthetic --output {root}"
        )

    label_names = set(_files_below(label_dir, ".png"))
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
    if unlabelled:
        shown = "".join(f"\n  {image_dir / name}" for name in unlabelled[:5])
        more = f"\n  and {len(unlabelled) - 5} more" if len(unlabelled) > 5 else ""
        raise DataError(
            f"{len(unlabelled)} of {len(image_names)} {dataset.name} images of the split {split!r} "
            f"have no label:{shown}{more}\n"
            f"{_expected_and_found(dataset, root, split, label_dir)}\n"
            "Either kind of label file will do; nothing has to be converted first. Unpack the "
            "labels into the same root, or take the images without labels away."
        )
    return tuple(samples)


def read_image(path: Path) -> np.ndarray:
    """uint8 [h, w, 3], BGR. Raises CorruptFileError."""
    image = cv2.imdecode(np.frombuffer(_read_bytes(path), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise _corrupt(path, "it is not an image that OpenCV can decode")
    return image


def read_label(sample: Sample) -> np.ndarray:
    """uint8 [h, w] of train ids, 255 = ignore.

    Raises CorruptFileError, or DataError where the values are not those of the dataset.
    """
    path, content = sample.label, _read_bytes(sample.label)
    try:
        # Pillow, since OpenCV would turn the indices of a palette picture into colours.
        with Image.open(io.BytesIO(content)) as picture:
            raw = np.array(picture)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise _corrupt(path, str(error)) from error
    if raw.ndim != 2 or raw.dtype != np.uint8:
        raise DataError(
            f"{path} is no label: it has the shape {raw.shape} and type {raw.dtype}, where [h, w] "
            f"of uint8 is needed. Colour pictures of labels will not do; use *{path.name[-20:]} "
            "files as the dataset ships them."
        )
    label = cv2.LUT(raw, sample.label_format.train_ids)
    unknown = label == UNKNOWN
    if unknown.any():
        known = np.flatnonzero(sample.label_format.train_ids != UNKNOWN)
        raise DataError(
            f"{path} holds the label values {_ranges(np.unique(raw[unknown]))}, which do not exist "
            f"in files of the kind *{sample.label_format.suffix} (known: {_ranges(known)}). Is the "
            "file from another dataset, or already mapped? Restore it, or rename it to the kind "
            "that it is."
        )
    return label


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
            "Replace the one that was resized or mixed up."
        )
    return image, label


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _corrupt(path, error.strerror or str(error)) from error
    if not content:
        raise _corrupt(path, "it is empty")
    if content.startswith(b"\x89PNG") and (fault := _png_fault(content)):
        raise _corrupt(path, fault)
    return content


def _png_fault(content: bytes) -> str | None:
    """What is wrong with a PNG file, by the checksums that it carries (2 ms for a full-size one).

    Decoders differ in what they do with a damaged file, down to returning a partly grey picture.
    """
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
    return CorruptFileError(
        f"{path} cannot be read: {why}. Restore the file, or set data.skip_corrupt=True to train "
        "without such files."
    )


def _files_below(folder: Path, suffix: str) -> list[str]:
    """Paths relative to `folder`, sorted; symbolic links are followed, hidden files passed over."""
    return sorted(
        (Path(directory) / name).relative_to(folder).as_posix()
        for directory, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    )


def _expected_and_found(dataset: Dataset, root: Path, split: str, wanted: Path) -> str:
    return f"Expected:\n{dataset.expected_tree(root, split)}\nFound:\n{_listing(root, wanted)}"


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


def _ranges(values: np.ndarray) -> str:
    """'0-18, 255' for 0, 1, … 18, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
