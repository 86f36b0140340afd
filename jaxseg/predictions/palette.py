"""Reads a file of class colors."""

import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from jaxseg.errors import ConfigError, first_few

COLOR = re.compile(r"#[0-9a-fA-F]{6}")
LINE = re.compile(r"(?:(.*\S)\s*:\s*)?(#\S*)")


def read_palette(
    file: pathlib.Path, names: Sequence[str], default: Integer[np.ndarray, "k 3"]
) -> UInt8[np.ndarray, "k 3"]:
    """Reads the colors of classes from a file.

    The file has one line per class: its color as #rrggbb, in the order of the classes, or its name
    and color, as in `road: #804080`. It may also be JSON: a list of colors, or an object that maps
    names to colors. Empty lines do not count.

    Args:
      file: the file, in UTF-8.
      names: the name of each class.
      default: the colors of classes that the file does not name.

    Returns:
      The color of each class, RGB.

    Raises:
      ConfigError: if the file cannot be read, or does not describe colors of these classes.
    """
    pairs = _read(file)
    if wrong := [color for _, color in pairs if not COLOR.fullmatch(color)]:
        raise ConfigError(f"--palette {file}: {wrong[0]!r} is no color; write it as #rrggbb")
    given = [name for name, _ in pairs if name is not None]
    palette = np.array(default, np.uint8)
    colors = [np.frombuffer(bytes.fromhex(color[1:]), np.uint8) for _, color in pairs]
    if not given:
        if len(colors) != len(names):
            raise ConfigError(
                f"--palette {file} has {len(colors)} colors, but the model has {len(names)}"
                " classes; give one color per class, or lines NAME: #rrggbb for some of them"
            )
        return np.stack(colors)
    if len(given) < len(pairs):
        raise ConfigError(f"--palette {file}: some colors have a name and others have none")
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(
            f"--palette {file}: the model has no class {unknown[0]!r}; its classes are"
            f"{first_few(list(names), 200)}"
        )
    if twice := [name for name in given if given.count(name) > 1]:
        raise ConfigError(f"--palette {file}: {twice[0]!r} is listed twice")
    for name, color in zip(given, colors, strict=True):
        palette[list(names).index(name)] = color
    return palette


def _read(file: pathlib.Path) -> list[tuple[str | None, str]]:
    """Returns the (name or None, color) pairs of a file; whether they are colors is not checked."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--palette {file} cannot be read: {error}") from error
    if text.lstrip().startswith(("{", "[")):
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"--palette {file} is no valid JSON: {error}") from error
        if isinstance(content, list):
            return [(None, str(color)) for color in content]
        return [(name, str(color)) for name, color in content.items()]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    matches = [LINE.fullmatch(line) for line in lines]
    for line, match in zip(lines, matches, strict=True):
        if match is None:
            raise ConfigError(f"--palette {file}: {line!r} is neither #rrggbb nor NAME: #rrggbb")
    return [(match[1], match[2]) for match in matches if match]
