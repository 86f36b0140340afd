"""Decodes picture files of images and labels to arrays.

Files in the format of `jaxseg.data.decoding.arrays` are also picture files. Arrays read from them
are read-only. A file that cannot be read raises a `CorruptFileError` that names it.
"""

import contextlib
import io
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxseg.data.decoding import arrays, png
from jaxseg.errors import CorruptFileError, DataError


@runtime_checkable
class PictureFile(Protocol):
    """Represents a picture file: a `pathlib.Path`, or an object in its place, such as a record.

    `str` gives its name for messages.
    """

    @property
    def stem(self) -> str:
        """The file name without the last suffix."""
        ...

    def read_bytes(self) -> bytes: ...

    def open(self, mode: str) -> io.BufferedIOBase: ...


def read_image(picture: PictureFile) -> np.ndarray:
    """Reads an image as uint8 [h, w, 3] in BGR.

    Raises:
      CorruptFileError: if it cannot be read.
    """
    image = OpenedImage(picture)
    return image.first_rows(image.hw[0])


class OpenedImage:
    """Reads an image file, and decodes a PNG only as far down as its rows are requested.

    Attributes:
      hw: the image's (height, width).

    Raises:
      CorruptFileError: if the file cannot be read.
    """

    def __init__(self, picture: PictureFile):
        self._picture, self._content = picture, read_bytes(picture)
        self._png = png.rows(self._content)
        if self._png:
            self.hw = self._png.hw
        else:
            self._whole = self._decode(self._content)
            height, width, _ = self._whole.shape
            self.hw = height, width

    def first_rows(self, count: int) -> np.ndarray:
        """Returns at least `count` rows from the top, uint8 [n, w, 3] in BGR.

        An image with fewer rows is returned whole.

        Raises:
          CorruptFileError: if they cannot be decoded.
        """
        if self._png:
            return self._decode(self._png.first(count) or self._content)
        return self._whole

    def _decode(self, content):
        if content.startswith(arrays.MAGIC):
            with _decoding(self._picture):
                return arrays.from_bytes(content)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise _corrupt(self._picture, "it is not an image that OpenCV can decode")
        return image


def image_hw(picture: PictureFile) -> tuple[int, int]:
    """Returns the (height, width) that `read_image` gives, reading only the header.

    Raises:
      CorruptFileError: if the header cannot be read.
    """
    with _opened(picture) as file:
        if arrays.begins(file):
            height, width, *_ = arrays.read_shape(file)
            return height, width
        with Image.open(file) as header:
            width, height = header.size
            turned = header.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)


def read_raw_label(picture: PictureFile) -> np.ndarray:
    """Reads a label's values as stored: gray values of 1 to 16 bits, or indices of a palette.

    Returns:
      The values, uint8 [h, w].

    Raises:
      CorruptFileError: if the file cannot be read.
      DataError: if the file does not have one value from 0 to 255 per pixel.
    """
    content = read_bytes(picture)
    with _decoding(picture):
        if content.startswith(arrays.MAGIC):
            raw = arrays.from_bytes(content)
        else:
            # Pillow keeps the indices of a palette picture, while OpenCV would convert them to
            # colors. Like the reference's reader of labels, Pillow does not rotate pictures
            # according to their metadata.
            raw = np.array(Image.open(io.BytesIO(png.uncompressed(content))))
    if raw.ndim != 2:
        raise DataError(
            f"{picture} is not a label: it has the shape {raw.shape}, but one value per pixel,"
            " [h, w], is needed. Labels cannot be read from color pictures; use the label ids that"
            " come with the dataset."
        )
    if raw.dtype != np.uint8 and (raw.min() < 0 or raw.max() > 255):
        raise DataError(
            f"{picture} is not a label: it holds values from {raw.min()} to {raw.max()}, but labels"
            " hold values from 0 to 255. Is it a map of instances or of depth?"
        )
    return raw.astype(np.uint8, copy=False)


def raw_label_hw(picture: PictureFile) -> tuple[int, int]:
    """Returns the (height, width) that `read_raw_label` gives, reading only the header.

    Raises:
      CorruptFileError: if the header cannot be read.
    """
    with _opened(picture) as file:
        if arrays.begins(file):
            height, width, *_ = arrays.read_shape(file)
            return height, width
        with Image.open(file) as header:
            return header.height, header.width


@contextlib.contextmanager
def _opened(picture):
    with _decoding(picture), picture.open("rb") as file:
        yield file


@contextlib.contextmanager
def _decoding(picture):
    """Turns the errors of decoders into a CorruptFileError."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise _corrupt(picture, "its format is unknown") from error
    except (OSError, SyntaxError) as error:
        raise _corrupt(picture, str(error)) from error


def read_bytes(picture: PictureFile) -> bytes:
    """Reads the content of a picture file, and verifies its checksums.

    Raises:
      CorruptFileError: if the file cannot be read, is empty or is damaged.
    """
    try:
        content = picture.read_bytes()
    except OSError as error:
        raise _corrupt(picture, error.strerror or str(error)) from error
    if not content:
        raise _corrupt(picture, "it is empty")
    if fault := _fault(content):
        raise _corrupt(picture, fault)
    return content


def _fault(content: bytes) -> str | None:
    """Returns what is wrong with a picture file, as far as its bytes show, or None.

    Decoders treat damaged files differently; some return a partly gray picture.
    """
    if content.startswith(png.SIGNATURE[:4]):
        return png.fault(content)
    # JPEG has no checksums. In a complete file, an "end of image" follows the last "start of scan".
    if content.startswith(b"\xff\xd8") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        return f"it ends early, after {len(content)} bytes"
    return None


def _corrupt(picture: PictureFile, why: str) -> CorruptFileError:
    return CorruptFileError(f"{picture} cannot be read: {why}")
