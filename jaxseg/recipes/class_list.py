"""Reads the file of class names that comes with a user's own data.

The file has one class per line. A line says what the labels hold and which class that is:

    road                   the number of the line, counted from 0
    7: road                a value of the masks
    #804080: road          a color of the masks
    road:128,64,128::      the same, as CVAT writes it in labelmap.txt
    trottoir: pavement     a name in annotations (COCO, LabelMe), besides the class names themselves

Several lines may name one class. What is named `ignore` is ignored. A color at the end of a line,
as in `7: road #804080`, is the one that the class is drawn in. Empty lines and other lines that
begin with # do not count.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxseg.errors import ConfigError

IGNORED = "ignore"
MOST_CLASSES = 254  # 255 is ignored
MOST_COLORS = 256

Color = tuple[int, int, int]
COLOR = "#[0-9a-fA-F]{6}"
MASK_COLOR = re.compile(rf"({COLOR})\s*:\s*(\S.*)")
CVAT = re.compile(r"([^:]+):(\d+),\s*(\d+),\s*(\d+):[^:]*:[^:]*")
DRAWN_COLOR = re.compile(rf"(.*\S)\s+({COLOR})")
VALUE = re.compile(r"(\d+)\s*:\s*(\S.*)")
ALIAS = re.compile(r"([^:]*[^:\s])\s*:\s+(\S.*)")


@dataclass(frozen=True)
class ClassList:
    """Says which class belongs to what the labels hold.

    Class indices are None for what is ignored.

    Attributes:
      classes: the class names.
      values: the class index of each value in masks.
      colors: the class index of each RGB color in masks; empty if they hold values.
      names: the class index of each name in annotations.
      drawn: the color that a class is drawn in, by class index, where the file gives one.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int | None]
    colors: Mapping[Color, int | None]
    names: Mapping[str, int | None]
    drawn: Mapping[int, Color]


def read_lines(file: str) -> tuple[str, ...]:
    """Returns the lines of a file of class names, without empty lines and comments.

    Raises:
      ConfigError: if the file cannot be read or lists no classes.
    """
    try:
        lines = pathlib.Path(file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config.data.classes={file} cannot be read: {error}") from error
    lines = (line.strip() for line in lines)
    found = tuple(
        line for line in lines if line and (MASK_COLOR.fullmatch(line) or not line.startswith("#"))
    )
    if not found:
        raise ConfigError(f"config.data.classes={file} lists no classes")
    return found


def parse_lines(lines: Sequence[str]) -> ClassList:
    """Parses the lines of a file of class names.

    Raises:
      ConfigError: for lines that are not a valid list of classes.
    """
    if not lines:
        raise ConfigError("config.data.classes=FILE is needed: a file of class names, one per line")
    values, colors, names, numbered, drawn, order = {}, {}, {}, {}, {}, []
    for line in lines:
        text, color = _split_drawn_color(line)
        if found := MASK_COLOR.fullmatch(text):
            name, of_mask = found[2], parse_color(found[1])
            _add(colors, of_mask, name, f"the color {found[1]}")
            color = color or of_mask
        elif found := CVAT.fullmatch(line):
            name, color = found[1], _cvat_color(found)
            _add(colors, color, name, f"the color of {line!r}")
        elif found := VALUE.fullmatch(text):
            name = found[2]
            _add(values, int(found[1]), name, f"the value {found[1]}")
        elif found := ALIAS.fullmatch(text):
            name = found[2]
            _add(names, found[1], name, repr(found[1]))
        else:
            name = text
            _add(numbered, name, line, repr(name))
        order.append(name)
        if color:
            drawn.setdefault(name, color)
    _check(values, colors, numbered)

    classes = tuple(name for name in dict.fromkeys(order) if name != IGNORED)
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ConfigError(
            f"config.data.classes lists {len(classes)} classes; it must list 1 to {MOST_CLASSES}"
        )
    index = {IGNORED: None} | {name: k for k, name in enumerate(classes)}
    if numbered:
        values = dict(enumerate(numbered))
    return ClassList(
        classes,
        {value: index[name] for value, name in values.items()},
        {color: index[name] for color, name in colors.items()},
        index | {key: index[name] for key, name in names.items()},
        {classes.index(name): color for name, color in drawn.items() if name != IGNORED},
    )


def _split_drawn_color(line: str) -> tuple[str, Color | None]:
    found = DRAWN_COLOR.fullmatch(line)
    return (found[1], parse_color(found[2])) if found else (line, None)


def _cvat_color(found: re.Match) -> Color:
    red, green, blue = (int(part) for part in found.groups()[1:])
    if max(red, green, blue) > 255:
        raise ConfigError(f"config.data.classes: {found[0]!r} has a color above 255")
    return red, green, blue


def _add(found: dict, key: int | Color | str, name: str, described: str):
    if key in found:
        raise ConfigError(f"config.data.classes: {described} is listed twice")
    found[key] = name


def _check(values, colors, numbered):
    """Checks that all lines say in the same way what masks hold."""
    if numbered and (values or colors):
        odd = next(iter(numbered.values()))
        raise ConfigError(f"config.data.classes: {odd!r} has no value, but other lines do")
    if values and colors:
        red, green, blue = next(iter(colors))
        raise ConfigError(
            f"config.data.classes: #{red:02x}{green:02x}{blue:02x} is a color, but other lines have"
            " values"
        )
    if values and max(values) > 255:
        raise ConfigError(f"config.data.classes: the value {max(values)} is above 255")
    if len(colors) > MOST_COLORS:
        raise ConfigError(
            f"config.data.classes lists {len(colors)} colors; at most {MOST_COLORS} are possible"
        )


def parse_color(text: str) -> Color:
    """Returns the color of #RRGGBB.

    >>> parse_color("#804080")
    (128, 64, 128)
    """
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
