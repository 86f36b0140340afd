"""Your own images and masks: a dataset described by settings and a file of class names.

The file has a class a line; the number of a line, from 0 on, is the class's value in the masks.
Where the values are others, every line begins with its own, as in `255: vessel`; values of one name
are one class, and `ignore` is none. Empty lines and those that begin with # do not count.
"""

import colorsys
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxseg.data.datasets.description import IGNORE, UNKNOWN, Dataset, LabelFormat, label_table
from jaxseg.errors import ConfigError

NAME = "custom"
IGNORED = "ignore"
HEADS = ("decode_head", "auxiliary_head")


def fill_in(config: ConfigDict):
    """Takes the classes of a config of one's own data from their file, and the heads' outputs.

    The lines go into `config.data.class_lines`, in the place of `config.data.classes`: checkpoints
    then know them without the file. Configs of other datasets stay as they are.

    Raises:
      ConfigError: where there is no such file, or where it does not list classes.
    """
    if config.data.dataset != NAME:
        return
    if config.data.classes:
        try:
            lines = pathlib.Path(config.data.classes).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"config.data.classes={config.data.classes} cannot be read: {error}"
            ) from error
        lines = (line.strip() for line in lines)
        config.data.class_lines = tuple(ln for ln in lines if ln and not ln.startswith("#"))
        if not config.data.class_lines:
            raise ConfigError(f"config.data.classes={config.data.classes} lists no classes")
        config.data.classes = ""
    classes, _ = parse(config.data.class_lines)
    for head in HEADS:
        if config.model.get(head):
            config.model[head].num_classes = len(classes)


def describe(data: ConfigDict) -> Dataset:
    """data: has class_lines, images, labels, image_suffix and label_suffix."""
    classes, train_ids = parse(data.class_lines)
    return Dataset(
        name=NAME,
        classes=classes,
        palette=palette(len(classes)),
        images=data.images,
        image_suffix=data.image_suffix,
        labels=(data.labels,),
        label_formats=(LabelFormat(data.label_suffix, label_table(train_ids)),),
        label_origin="A mask has a value per pixel, as the lines of config.data.classes list them;"
        " folders and suffixes are config.data.images, labels, image_suffix and label_suffix.",
    )


def parse(lines: Sequence[str]) -> tuple[tuple[str, ...], dict[int, int]]:
    """The class names, and what each value in the masks means: a class or `IGNORE`.

    Raises:
      ConfigError: for lines that list no classes.
    """
    if not lines:
        raise ConfigError("config.data.classes=FILE is needed: a file of class names, one a line")
    numbered = [re.fullmatch(r"(\d+)\s*:\s*(\S.*)", line) for line in lines]
    if any(numbered) and not all(numbered):
        odd = next(line for line, match in zip(lines, numbered, strict=True) if not match)
        raise ConfigError(f"config.data.classes: {odd!r} has no value, but other lines have")
    if all(numbered):
        pairs = [(int(match[1]), match[2]) for match in numbered]
    else:
        pairs = list(enumerate(lines))
    values = [value for value, _ in pairs]
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ConfigError(f"config.data.classes: the value {min(repeated)} is listed twice")
    if not all(numbered) and len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise ConfigError(f"config.data.classes: {twice!r} is listed twice")
    if max(values) > 255:
        raise ConfigError(f"config.data.classes: values go up to 255, {max(values)} is above")
    classes = tuple(dict.fromkeys(name for _, name in pairs if name != IGNORED))
    if not 1 <= len(classes) <= UNKNOWN:
        raise ConfigError(f"config.data.classes lists {len(classes)} classes; 1 to {UNKNOWN} work")
    return classes, {
        value: IGNORE if name == IGNORED else classes.index(name) for value, name in pairs
    }


def palette(count: int) -> np.ndarray:
    """Colours that differ from their neighbours, uint8 [count, 3]: hues a golden ratio apart."""
    colours = [colorsys.hsv_to_rgb(k * 0.618 % 1, 0.75, (0.95, 0.65)[k % 2]) for k in range(count)]
    return np.round(255 * np.array(colours)).astype(np.uint8)
