"""What a dataset is: its classes and colors, its label values, and the folders it lies in.

Plain description, one file per family of datasets, from `ade20k` to `potsdam`. `datasets` finds and
reads what is described.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
    images: folder below the root, with `{split}`; files are found in it recursively.
    labels: the same for labels, in order of preference; the first that exists is read.
    labels_of: in the place of `labels`, for splits whose labels lie elsewhere.
    label_formats: in order of preference; the first whose file exists is read.
    split_list: text file below the root, with `{split}`, that names the images of a split in order,
      one a line and without suffix; "" where a split is all that its folder holds.
    subfolders: those that the release has below images and labels, for messages.
    label_origin: how one comes by the labels, for messages.
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
    label_origin: str = "Labels are read as they were released; nothing has to be converted first."

    def image_folder(self, split: str) -> str:
        return self.images.format(split=split)

    def label_folders(self, split: str) -> list[str]:
        folders = self.labels_of.get(split, self.labels)
        return [folder.format(split=split) for folder in folders]

    def split_list_file(self, split: str) -> str:
        return self.split_list.format(split=split)

    def expected_tree(self, root: Path, splits: Sequence[str]) -> str:
        """The folders and files that belong below `root`, as text for messages."""
        label_names = " or ".join(f"*{form.suffix}" for form in self.label_formats)
        lines = [f"  {root}/"]
        for split in splits:
            lines += [f"    {self.split_list_file(split)}"] * bool(self.split_list)
            labels = (f"{f}/{self.subfolders}{label_names}" for f in self.label_folders(split))
            lines += [
                f"    {self.image_folder(split)}/{self.subfolders}*{self.image_suffix}",
                f"    {' or '.join(labels)}",
            ]
        return "\n".join(lines)


def label_table(train_ids: Mapping[int, int]) -> np.ndarray:
    """uint8 [256]: the given raw values; else, 255 is ignored and everything else `UNKNOWN`."""
    table = np.full(256, UNKNOWN, np.uint8)
    # 255 is "ignore" in ready-made labels, and what the id -1 (license plate) becomes in uint8.
    table[255] = IGNORE
    table[list(train_ids)] = list(train_ids.values())
    table.flags.writeable = False
    return table


def names(text: str) -> tuple[str, ...]:
    """The class names in a text, which commas separate."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def colors(text: str) -> np.ndarray:
    """uint8 [K, 3] from RRGGBB numbers, which blanks separate."""
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3)


def ranges(values: np.ndarray) -> str:
    """'0-18, 255' for 0, 1, … 18, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
