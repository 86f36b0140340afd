"""Finds fonts that have the characters of a text.

DejaVu Sans, a file of matplotlib, has Latin, Greek, Cyrillic and more. For other scripts the fonts
of the system are searched.
"""

import contextlib
import functools
import importlib.util
import pathlib

from fontTools.ttLib import TTFont, TTLibError
from PIL import ImageFont

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts")
FOLDERS += ("/System/Library/Fonts", "/Library/Fonts", "C:/Windows/Fonts")
SUFFIXES = (".ttf", ".otf", ".ttc")


@functools.cache
def load_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Returns a font that has all characters of a text, or DejaVu Sans if there is none.

    Args:
      size: the height of the font in pixels.
      text: the text to draw.
    """
    return ImageFont.truetype(_file_with(frozenset(text)) or _dejavu(), size)


def drawable(text: str) -> bool:
    """Returns whether some font has all characters of a text."""
    return _file_with(frozenset(text)) is not None


@functools.cache
def _file_with(characters: frozenset[str]) -> str | None:
    codes = {ord(character) for character in characters}
    if codes <= _codes_in(_dejavu()):
        return _dejavu()
    return next((file for file in _system_fonts() if codes <= _codes_in(file)), None)


@functools.cache
def _dejavu() -> str:
    package = importlib.util.find_spec("matplotlib")  # importing it would take half a second
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "matplotlib, whose font is used, is missing; install jaxseg again"
        )
    return f"{package.submodule_search_locations[0]}/mpl-data/fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    folders = [pathlib.Path(folder) for folder in FOLDERS if not folder.startswith("~")]
    with contextlib.suppress(RuntimeError):  # of a user without a home directory
        folders += [pathlib.Path(f).expanduser() for f in FOLDERS if f.startswith("~")]
    files = (file for folder in folders for file in folder.rglob("*"))
    return tuple(sorted(str(file) for file in files if file.suffix.lower() in SUFFIXES))


@functools.cache
def _codes_in(file: str) -> frozenset[int]:
    try:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError):
        return frozenset()
