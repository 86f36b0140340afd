"""Defines how a dataset is described: its classes, colors, label values and folders.

Each family of datasets has one file with its description, from `ade20k` to `potsdam`.
`jaxseg.data.datasets` finds a description by its name, and `jaxseg.data.readers` reads the files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxseg.data.decoding.pictures import PictureFile
from jaxseg.data.division import Division
from jaxseg.data.picture_files import SUFFIXES
from jaxseg.errors import DataError
from jaxseg.recipes.class_list import IGNORED

CUSTOM = "custom"  # the name of a user's own data in configs
MASKS, ANNOTATIONS = (".png", ".tif", ".tiff", ".bmp"), ".json"  # the labels of own data
EACH_CLASS = "{class}"  # in the folder or the suffix of labels: each class has a file
IGNORE = 255
BACKGROUND = ("background", "_background_")  # the second one is LabelMe's
UNKNOWN = 254  # in a label table: the raw value does not exist, so a pixel with it is an error


@dataclass(frozen=True, eq=False)
class LabelFormat:
    """Describes one way in which a dataset's labels are stored.

    Attributes:
      suffix: replaces the image suffix in the file name.
      train_ids: uint8 [256], the class index, `IGNORE` or `UNKNOWN` of every raw value.
      opened: makes a label with one value per pixel of a file that holds something else. Without
        it, the file has these values.
      value_names: what the values stand for in the file, such as colors; empty for numbers.
    """

    suffix: str
    train_ids: np.ndarray
    opened: Callable[[Path], PictureFile] | None = None
    value_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassNames:
    """Says which train id belongs to the names in annotations.

    Attributes:
      train_ids: the train id of each name.
      background: the train id of pixels that no annotation covers.
    """

    train_ids: Mapping[str, int]
    background: int

    @classmethod
    def of(cls, names: Mapping[str, int | None]) -> "ClassNames":
        """Returns them for class indices by name, None for what is ignored.

        A class named background is what no annotation covers; without one, this is ignored.
        """
        train_ids = {name: IGNORE if k is None else k for name, k in names.items()}
        background = [k for name, k in train_ids.items() if name.lower() in BACKGROUND]
        return cls(train_ids, background[0] if background else IGNORE)

    def train_id(self, name: str, file: Path) -> int:
        """Returns the train id of a name in a file.

        Raises:
          DataError: for a name without a class.
        """
        if name not in self.train_ids:
            known = ", ".join(each for each in self.train_ids if each != IGNORED)
            raise DataError(
                f"{file} has annotations of {name!r}, and config.data.classes has no such name"
                f" (it has {known}). Add it to the file of class names: a line {name}, or"
                f" '{name}: CLASS' for another class, or '{name}: ignore'."
            )
        return self.train_ids[name]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Describes a dataset: its name, its classes and how its folders are laid out.

    Attributes:
      name: the name in configs.
      classes: the K class names. The index of a name is its train id.
      palette: the color of each class, uint8 [K, 3] in RGB.
      images: the folder of images below the root, with `{split}`. It is searched recursively.
      image_suffix: the end of the file name of every image, in lower or upper case. If it is "",
        every kind of picture file is an image.
      labels: the same as `images` for labels, in order of preference. The first folder that exists
        is read.
      label_formats: in order of preference. The first format whose file exists is read.
      labels_of: replaces `labels` for splits whose labels lie elsewhere.
      split_list: a text file below the root, with `{split}`. It names the images of a split in
        order, one per line and without suffix. If it is "", a split is all that its folder holds.
      subfolders: the subfolders that the release has below images and labels, for messages.
      label_origin: how to obtain the labels, for messages.
      class_names: what the names in annotations mean, for labels that are drawn from them.
      division: how the images of one split become two, or None.
      drawn_by: what labels are drawn by, beside their files: the lines of the file of class names.
    """

    name: str
    classes: tuple[str, ...]
    palette: np.ndarray
    images: str
    image_suffix: str
    labels: tuple[str, ...]
    label_formats: tuple[LabelFormat, ...]
    labels_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split_list: str = ""
    subfolders: str = ""
    label_origin: str = "Labels are read as released; nothing has to be converted first."
    class_names: ClassNames | None = None
    division: Division | None = None
    drawn_by: str = ""

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        """The ends that the file name of an image may have."""
        return (self.image_suffix,) if self.image_suffix else SUFFIXES

    def image_folder(self, split: str) -> str:
        """Returns the folder of a split's images, below the root."""
        return self.images.format(split=self._stored_split(split))

    def label_folders(self, split: str) -> list[str]:
        """Returns the folders of a split's labels below the root, in order of preference."""
        folders = self.labels_of.get(split, self.labels)
        return [folder.replace("{split}", self._stored_split(split)) for folder in folders]

    def _stored_split(self, split):
        return self.division.whole if self.division and self.division.covers(split) else split

    def split_list_file(self, split: str) -> str:
        """Returns the file that names a split's images, below the root."""
        return self.split_list.format(split=split)

    def expected_tree(self, root: Path, splits: Sequence[str]) -> str:
        """Returns the folders and files that belong below `root`, as text for messages."""
        label_names = " or ".join(f"*{form.suffix}" for form in self.label_formats)
        lines = [f"  {root}/"]
        for split in splits:
            lines += [f"    {self.split_list_file(split)}"] * bool(self.split_list)
            labels = (
                folder if is_coco_file(folder) else f"{folder}/{self.subfolders}{label_names}"
                for folder in self.label_folders(split)
            )
            lines += [
                f"    {self.image_folder(split)}/{self.subfolders}*{'|'.join(self.image_suffixes)}",
                f"    {' or '.join(labels)}",
            ]
        return "\n".join(lines)


def is_coco_file(labels: str | Path) -> bool:
    """Tells whether the labels of a split lie in one file, not in a folder."""
    return str(labels).lower().endswith(ANNOTATIONS)


def label_table(train_ids: Mapping[int, int]) -> np.ndarray:
    """Returns the train id of every raw value, uint8 [256].

    Of the raw values that `train_ids` lacks, 255 becomes `IGNORE` and the others `UNKNOWN`:

    >>> label_table({7: 0, 8: 1})[[6, 7, 8, 255]].tolist()
    [254, 0, 1, 255]
    """
    table = np.full(256, UNKNOWN, np.uint8)
    # In ready-made labels, 255 means "ignore". It is also the id -1 (license plate) as uint8.
    table[255] = IGNORE
    table[list(train_ids)] = list(train_ids.values())
    table.flags.writeable = False
    return table


def names(text: str) -> tuple[str, ...]:
    """Splits a text at its commas into class names."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def colors(text: str) -> np.ndarray:
    """Parses RRGGBB numbers, separated by blanks, into uint8 [K, 3]."""
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3)


def ranges(values: np.ndarray) -> str:
    """Writes ascending numbers as ranges.

    >>> ranges(np.array([0, 1, 2, 3, 255]))
    '0-3, 255'
    """
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
