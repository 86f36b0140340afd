"""Writes files completely or not at all, or says why it cannot."""

import contextlib
import errno
import io
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg.errors import OutputError

REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder, or change its permissions",
    errno.EPERM: "choose another folder, or change its permissions",
    errno.ENOTDIR: "a part of this path is a file; choose another folder",
    errno.EEXIST: "a part of this path is a file; choose another folder",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError while `path` is written into an OutputError that names it.

    Raises:
      OutputError: with the reason and the remedy.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = REMEDIES.get(error.errno or 0, "choose another folder")
        raise OutputError(f"cannot write {path}: {reason}; {remedy}") from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, and moves the file to `path` at the end.

    The folder is made if it does not exist. A reader finds the old file or the new one, never an
    incomplete one. An error leaves the old file as it was. The next call overwrites what a killed
    process has left.

    Raises:
      OutputError: if the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_bytes(path: pathlib.Path, content: bytes | bytearray | memoryview):
    """Writes a file completely or not at all, and waits until it is on disk.

    Raises:
      OutputError: if the file cannot be written.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: pathlib.Path, text: str):
    """Writes a UTF-8 text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_png(path: pathlib.Path, pixels: UInt8[np.ndarray, "h w *rgb"] | Image.Image):
    """Writes a picture as PNG, as `write_bytes` does.

    Args:
      path: the file.
      pixels: a gray picture [h, w], an RGB picture [h, w, 3], or a picture of Pillow.
    """
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=1)
    write_bytes(path, content.getbuffer())
