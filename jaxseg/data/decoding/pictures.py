"""Pictures of images and of labels: from the bytes of a file to arrays.

Files in the form of `jaxseg.data.decoding.arrays` are pictures, too; what is read of them is
read-only. What cannot be read is a `CorruptFileError` that names the file.
"""

import contextlib
import io
from typing import BinaryIO, Protocol

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxseg.data.decoding import arrays, png
from jaxseg.errors import CorruptFileError, DataError


class PictureFile(Protocol):
    """A picture file: a `pathlib.Path`, or what stands for one, such as a record of many.

    `str` gives its name for messages.
    """

    @property
    def stem(self) -> str:
        """Its file name without the last suffix."""

    def read_bytes(self) -> bytes: ...

    def open(self, mode: str) -> BinaryIO: ...


def read_image(picture: PictureFile) -> np.ndarray:
    """uint8 [h, w, 3], BGR. Raises CorruptFileError."""
    image = OpenedImage(picture)
    return image.first_rows(image.hw[0])


class OpenedImage:
    """An image that is read and, if it is a PNG, decoded only as far down as it is asked for.

    hw: its height and width.

    Raises CorruptFileError.
    """

    def __init__(self, picture: PictureFile):
        self._picture, self._content = picture, read_bytes(picture)
        self._png = png.rows(self._content)
        if self._png:
            self.hw = self._png.hw
        else:
            self._whole = self._decode(self._content)
            self.hw = self._whole.shape[:2]

    def first_rows(self, count: int) -> np.ndarray:
        """uint8 [count or more, w, 3], BGR, from the top. Raises CorruptFileError."""
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
    """The size that `read_image` gives, from the header alone. Raises CorruptFileError."""
    with _opened(picture) as file:
        if arrays.begins(file):
            return arrays.read_shape(file)[:2]
        with Image.open(file) as header:
            width, height = header.size
            turned = header.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)


def read_raw_label(picture: PictureFile) -> np.ndarray:
    """uint8 [h, w] of the values as stored: gray ones of 1 to 16 bits, or indices of a palette.

    Raises CorruptFileError, or DataError where there is not one value from 0 to 255 per pixel.
    """
    content = read_bytes(picture)
    with _decoding(picture):
        if content.startswith(arrays.MAGIC):
            raw = arrays.from_bytes(content)
        else:
            # Pillow, since OpenCV would turn the indices of a palette picture into colors. It does
            # not turn pictures by their metadata either, which is as the reference reads labels.
            raw = np.array(Image.open(io.BytesIO(png.uncompressed(content))))
    if raw.ndim != 2:
        raise DataError(
            f"{picture} is no label: it has the shape {raw.shape}, where one value per pixel,"
            " [h, w], is needed. Color pictures of labels will not do; use the label ids as the"
            " dataset ships them."
        )
    if raw.dtype != np.uint8 and (raw.min() < 0 or raw.max() > 255):
        raise DataError(
            f"{picture} is no label: it holds values from {raw.min()} to {raw.max()}, where those"
            " of labels are from 0 to 255. Is it a map of instances or of depth?"
        )
    return raw.astype(np.uint8, copy=False)


def raw_label_hw(picture: PictureFile) -> tuple[int, int]:
    """The size that `read_raw_label` gives, from the header alone. Raises CorruptFileError."""
    with _opened(picture) as file:
        if arrays.begins(file):
            return arrays.read_shape(file)[:2]
        with Image.open(file) as header:
            return header.height, header.width


@contextlib.contextmanager
def _opened(picture):
    with _decoding(picture), picture.open("rb") as file:
        yield file


@contextlib.contextmanager
def _decoding(picture):
    """What goes wrong inside is a CorruptFileError."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise _corrupt(picture, "it is no picture of a known format") from error
    except (OSError, SyntaxError) as error:
        raise _corrupt(picture, str(error)) from error


def read_bytes(picture: PictureFile) -> bytes:
    """The content of a picture file that is whole, by its checksums. Raises CorruptFileError."""
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
    """What is wrong with a picture file, as far as its bytes tell.

    Decoders differ in what they do with a damaged file, down to returning a partly gray picture.
    """
    if content.startswith(png.SIGNATURE[:4]):
        return png.fault(content)
    # JPEG has no checksums, but the last "start of scan" is followed by an "end of image".
    if content.startswith(b"\xff\xd8") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        return f"it ends early, after {len(content)} bytes"
    return None


def _corrupt(picture: PictureFile, why: str) -> CorruptFileError:
    return CorruptFileError(f"{picture} cannot be read: {why}")
