"""Decodes picture files of images and labels to arrays.

Files in the format of `jaxseg.data.decoding.arrays` are also picture files. Arrays read from them
are read-only. A file that cannot be read raises a `CorruptFileError` that names it.
"""

import contextlib
import io
import struct
import threading
from typing import Literal, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxseg.data.decoding import arrays, jpeg, png
from jaxseg.errors import CorruptFileError, DataError

MOST_PIXELS = 2**30  # of OpenCV; Pillow's own limit is below what aerial pictures have
# A small file that claims to be a huge picture is damaged, or made to fill the memory.
SMALL_PIXELS, PIXELS_PER_BYTE = 2**26, 10_000
# Sensors have up to 14 bits. As 16 bits, their values make a picture that is nearly black.
FULL_16_BITS = 2**14
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What Pillow's readers raise for damaged files.
DAMAGE = (ArithmeticError, LookupError, MemoryError, OSError, SyntaxError, TypeError, ValueError)
DAMAGE += (EOFError, RuntimeError, struct.error)
_PILLOW_LIMIT = threading.Lock()


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

    def open(self, mode: Literal["rb"]) -> io.BufferedIOBase: ...


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
        if self._png and self._png.bits == 16:
            self._png = None  # whether 16 bits are used shows in the whole picture
        _check_pixels(picture, self._content)
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
        image = self._decode_as(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if image.dtype == np.uint8:
            return image
        if image.dtype != np.uint16:
            raise _corrupt(
                self._picture,
                f"its values are {image.dtype}, and images have 8 or 16 bits; scale them to 0..255",
            )
        if image.max() < FULL_16_BITS:
            raise _corrupt(
                self._picture,
                f"it has 16 bits, but its largest value is {image.max()} of 65535: as a picture it"
                " would be nearly black. Scale its values to 0..255 and save it with 8 bits",
            )
        return self._decode_as(content, cv2.IMREAD_COLOR)

    def _decode_as(self, content, flags):
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error as error:
            raise _corrupt(self._picture, error.err or str(error)) from error
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
        with _pillow(file) as header:
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
            _check_pixels(picture, content)
            with _pillow(io.BytesIO(png.uncompressed(content))) as label:
                raw = np.array(label)
    if raw.ndim != 2:
        raise DataError(
            f"{picture} is not a label: it has the shape {raw.shape}, but one value per pixel,"
            " [h, w], is needed. For masks of colors, config.data.classes lists the colors, such as"
            " `#804080: road`. Of a published dataset, use the files with label ids."
        )
    if raw.dtype.kind == "f" and not np.array_equal(raw, np.rint(raw)):  # nor does NaN equal NaN
        missing, broken = np.isnan(raw), raw[np.isfinite(raw) & (raw != np.rint(raw))]
        what = [f"NaN in {missing.sum()} of {missing.size} pixels"] * bool(missing.any())
        what += [f"fractions such as {value:g}" for value in broken[:1]]
        raise DataError(
            f"{picture} is not a label: it holds {' and '.join(what)}, but labels hold whole"
            " numbers from 0 to 255. Write 255 where a pixel belongs to no class."
        )
    if raw.dtype != np.uint8 and raw.size and (raw.min() < 0 or raw.max() > 255):
        raise DataError(
            f"{picture} is not a label: it holds values from {raw.min()} to {raw.max()}, but labels"
            " hold values from 0 to 255. Is it a map of instances or of depth?"
        )
    return raw.astype(np.uint8, copy=False)


def read_colors(picture: PictureFile) -> np.ndarray:
    """Reads the colors of a mask as uint8 [h, w, 3] in RGB; a palette gives its colors.

    Raises:
      CorruptFileError: if the file cannot be read.
    """
    content = read_bytes(picture)
    with _decoding(picture):
        _check_pixels(picture, content)
        with _pillow(io.BytesIO(png.uncompressed(content))) as mask:
            return np.array(mask.convert("RGB"))


def has_colors(picture: PictureFile) -> bool:
    """Returns whether a mask has a color for every pixel, rather than a value or an index.

    Raises:
      CorruptFileError: if the header cannot be read.
    """
    with _opened(picture) as file, _pillow(file) as header:
        return len(header.getbands()) > 2


def palette_of(picture: PictureFile) -> UInt8[np.ndarray, "n 3"] | None:
    """Returns the palette of a mask in RGB, or None if it has none.

    Raises:
      CorruptFileError: if the header cannot be read.
    """
    with _opened(picture) as file, _pillow(file) as header:
        palette = header.getpalette("RGB") if header.mode == "P" else None
    return None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)


def raw_label_hw(picture: PictureFile) -> tuple[int, int]:
    """Returns the (height, width) that `read_raw_label` gives, reading only the header.

    Raises:
      CorruptFileError: if the header cannot be read.
    """
    with _opened(picture) as file:
        if arrays.begins(file):
            height, width, *_ = arrays.read_shape(file)
            return height, width
        with _pillow(file) as header:
            return header.height, header.width


@contextlib.contextmanager
def _opened(picture):
    with _decoding(picture), picture.open("rb") as file:
        yield file


@contextlib.contextmanager
def _pillow(file):
    """Opens a picture in Pillow, whose own limit of pixels does not hold meanwhile."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with opened:
        yield opened


def _check_pixels(picture, content):
    """Refuses a picture that is too large, by its header, before memory is taken for it."""
    try:
        with _pillow(io.BytesIO(content)) as header:
            kind, width, height = header.format, *header.size
    except DAMAGE:
        return  # OpenCV reads kinds that Pillow does not, and says what is wrong with others
    # A WebP file of one color is tiny, and cannot be larger than 16383x16383.
    most = MOST_PIXELS if kind == "WEBP" else max(SMALL_PIXELS, PIXELS_PER_BYTE * len(content))
    if width * height > min(most, MOST_PIXELS):
        raise _corrupt(
            picture,
            f"it claims {height}x{width} pixels in {len(content):,} bytes; the limit for a file of"
            f" that size is {min(most, MOST_PIXELS):,} pixels",
        )


@contextlib.contextmanager
def _decoding(picture):
    """Turns the errors of decoders into a CorruptFileError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise _corrupt(picture, "its format is unknown") from error
    except DAMAGE as error:
        raise _corrupt(picture, str(error)) from error


def check_image(picture: PictureFile):
    """Checks an image's size and number type, as `read_image` does, without decoding most images.

    Raises:
      CorruptFileError: if `read_image` would refuse it for one of these.
    """
    content = read_bytes(picture)
    _check_pixels(picture, content)
    found = png.rows(content)
    if (found and found.bits == 16) or content.startswith(TIFF_SIGNATURES):
        OpenedImage(picture)


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
    if content.startswith(jpeg.SIGNATURE):
        return jpeg.fault(content)
    return None


def _corrupt(picture: PictureFile, why: str) -> CorruptFileError:
    return CorruptFileError(f"{picture} cannot be read: {why}")
