"""Finds the picture files in a folder, by one rule for training, evaluation and prediction.

A file counts if its name ends with a wanted suffix, in upper or lower case. Folders are searched to
any depth, and symbolic links are followed. What a person does not see, or did not put there, is
skipped for a reason that is kept: hidden files and folders, the leftovers of operating systems,
and the results of an earlier `jaxseg predict`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxseg.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What `jaxseg predict` appends to an image's name.
RESULTS = CLASSES, OVERLAY, COLOR = "_classes.png", "_overlay.png", "_color.png"
PANOPTIC = "panoptic"  # the folder of its panoptic pictures, beside panoptic.json
A_RESULT = "a result of jaxseg predict"
LEFTOVERS = {
    "__macosx": "made by macOS",
    "$recycle.bin": "the bin of Windows",
    "system volume information": "made by Windows",
    "lost+found": "made by the file system",
    "@eadir": "thumbnails of a Synology disk station",
}


class Skipped(NamedTuple):
    """A file or folder that was not read.

    Attributes:
      path: where it is.
      reason: why it was not read.
    """

    path: Path
    reason: str


class Found(NamedTuple):
    """The picture files in a folder.

    Attributes:
      names: their paths relative to the folder, sorted.
      skipped: what is hidden or left over, sorted.
      others: the pictures whose names end in another way, sorted.
    """

    names: list[str]
    skipped: list[Skipped]
    others: list[Path]


def find(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> Found:
    """Finds the picture files in a folder and its subfolders.

    Args:
      folder: the folder; one that does not exist holds nothing.
      suffixes: the ends of the file names, in lower or upper case.

    Raises:
      DataError: if a folder cannot be listed.
    """
    wanted = tuple(suffix.lower() for suffix in suffixes)
    names, skipped, others = [], [], []
    for name, reason in _walk(folder, "", ()):
        if reason:
            if name.endswith("/") or name.lower().endswith(wanted):
                skipped.append(Skipped(folder / name, reason))
        elif name.lower().endswith(wanted):
            names.append(name)
        elif name.lower().endswith(SUFFIXES):
            others.append(folder / name)
    results = _results(names)
    skipped += [Skipped(folder / name, A_RESULT) for name in results]
    return Found(sorted(set(names) - results), sorted(skipped), sorted(others))


def find_some(folder: Path) -> Found:
    """Finds the picture files in a folder that must have some.

    Raises:
      DataError: if there are none, with what was skipped; or if a folder cannot be listed.
    """
    found = find(folder)
    if not found.names:
        lines = "".join(f"\n  {line}" for line in describe(found.skipped))
        raise DataError(f"no images ({' '.join(SUFFIXES)}) in the folder {folder}{lines}")
    return found


def without_suffix(name: str, suffixes: Iterable[str] = SUFFIXES) -> str:
    """Removes the longest of the suffixes that a file name ends with, in upper or lower case.

    >>> without_suffix("day/IMG_1.JPG")
    'day/IMG_1'
    """
    ends = [len(suffix) for suffix in suffixes if name.lower().endswith(suffix.lower())]
    return name[: len(name) - max(ends, default=0)]


def describe(skipped: Sequence[Skipped]) -> list[str]:
    """Returns a line for each reason: how many files it skipped, and the first of them."""
    by_reason: dict[str, list[Path]] = {}
    for path, reason in skipped:
        by_reason.setdefault(reason, []).append(path)
    return [
        f"{len(paths)} skipped ({reason}): {paths[0]}" + (", …" if len(paths) > 1 else "")
        for reason, paths in by_reason.items()
    ]


def _walk(folder: Path, below: str, parents: tuple[tuple[int, int], ...]) -> Iterator:
    """Yields (path relative to the first folder, why it is skipped or "") of every file.

    The path of a skipped folder ends with a slash.
    """
    here = folder / below
    try:
        status = os.stat(here)
        with os.scandir(here) as listing:
            entries = list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DataError(f"the folder {here} cannot be listed: {error.strerror}") from error
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        yield below, "a link to a folder around it"
        return
    ours = {PANOPTIC: A_RESULT} if f"{PANOPTIC}.json" in {entry.name for entry in entries} else {}
    skipped = LEFTOVERS | ours
    for entry in entries:
        name = below + entry.name
        if _is(entry.is_dir):
            hidden = "hidden" if entry.name.startswith(".") else skipped.get(entry.name.lower())
            if hidden:
                yield f"{name}/", hidden
            else:
                yield from _walk(folder, f"{name}/", (*parents, identity))
        elif entry.name.startswith("."):
            yield name, "hidden"
        elif not _is(entry.is_file) and not entry.is_symlink():
            yield name, "not a regular file"
        else:  # a link to nothing fails when it is read, by its name
            yield name, ""


def _is(kind: Callable[[], bool]) -> bool:
    """Returns whether an entry is of a kind; a link to itself is of none."""
    try:
        return kind()
    except OSError:
        return False


def _results(names: Sequence[str]) -> set[str]:
    """Returns which files are results of `jaxseg predict`, by the other files.

    Beside them lies another result of the same name, or the image whose name they continue. The
    image may also lie in the folder around that of all results: a.jpg for masks/a_color.png, and
    x/a.jpg for masks/x/a_color.png.
    """
    there = set(names)
    images = {str(PurePosixPath(name).with_suffix("")) for name in names}
    found = set()
    for name in names:
        for suffix in RESULTS:
            stem = name.removesuffix(suffix)
            if stem == name:
                continue
            others = (f"{stem}{other}" for other in RESULTS if other != suffix)
            if not there.isdisjoint(others) or not images.isdisjoint(_without_a_folder(stem)):
                found.add(name)
    return found


def _without_a_folder(path: str) -> Iterator[str]:
    """Yields a path, and the path without each folder in it and folders around that.

    >>> list(_without_a_folder("out/x/a"))
    ['out/x/a', 'x/a', 'a', 'out/a']
    """
    parts = path.split("/")
    yield path
    for start in range(len(parts) - 1):
        for stop in range(start + 1, len(parts)):
            yield "/".join(parts[:start] + parts[stop:])
