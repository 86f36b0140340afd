"""The file of class names that comes with a user's own data.

The file has a class a line; the number of a line, from 0 on, is the class's value in the masks.
Where the values are others, every line begins with its own, as in `255: vessel`; values of one name
are one class, and `ignore` is none. Empty lines and those that begin with # do not count.
"""

import pathlib
import re
from collections.abc import Sequence

from jaxseg.errors import ConfigError

IGNORED = "ignore"
MOST_CLASSES = 254  # 255 is ignored


def read_lines(file: str) -> tuple[str, ...]:
    """The lines of a file of class names that count.

    Raises:
      ConfigError: where the file cannot be read or has no such lines.
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
    """The class names, and what each value in the masks means: a class, or None for `ignore`.

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
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ConfigError(
            f"config.data.classes lists {len(classes)} classes; 1 to {MOST_CLASSES} work"
        )
    return classes, {
        value: None if name == IGNORED else classes.index(name) for value, name in pairs
    }
