"""Reads the file of class names that comes with a user's own data.

The file has one class per line. The number of a line, counted from 0, is the class's value in the
masks. For other values, every line begins with its value, as in `255: vessel`. Values with the same
name are one class. Values named `ignore` are ignored. Empty lines and lines that begin with # do
not count.
"""

import pathlib
import re
from collections.abc import Sequence

from jaxseg.errors import ConfigError

IGNORED = "ignore"
MOST_CLASSES = 254  # 255 is ignored


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
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise ConfigError(f"config.data.classes={file} lists no classes")
    return found


def parse_lines(lines: Sequence[str]) -> tuple[tuple[str, ...], dict[int, int | None]]:
    """Parses the lines of a file of class names.

    Returns:
      The class names, and the class index of each value in the masks, None for `ignore`.

    Raises:
      ConfigError: for lines that are not a valid list of classes.
    """
    if not lines:
        raise ConfigError("config.data.classes=FILE is needed: a file of class names, one per line")
    numbered = [re.fullmatch(r"(\d+)\s*:\s*(\S.*)", line) for line in lines]
    given = [match for match in numbered if match]
    if given and len(given) < len(lines):
        odd = next(line for line, match in zip(lines, numbered, strict=True) if not match)
        raise ConfigError(f"config.data.classes: {odd!r} has no value, but other lines do")
    pairs = [(int(match[1]), match[2]) for match in given] or list(enumerate(lines))
    values = [value for value, _ in pairs]
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ConfigError(f"config.data.classes: the value {min(repeated)} is listed twice")
    if not given and len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise ConfigError(f"config.data.classes: {twice!r} is listed twice")
    if max(values) > 255:
        raise ConfigError(f"config.data.classes: the value {max(values)} is above 255")
    classes = tuple(dict.fromkeys(name for _, name in pairs if name != IGNORED))
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ConfigError(
            f"config.data.classes lists {len(classes)} classes; it must list 1 to {MOST_CLASSES}"
        )
    return classes, {
        value: None if name == IGNORED else classes.index(name) for value, name in pairs
    }
