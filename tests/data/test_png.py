"""The first rows of a PNG are those of the whole, whatever its kind; what is damaged is not cut."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxseg.data.decoding import png
from jaxseg.data.decoding.pictures import OpenedImage, read_image
from jaxseg.errors import CorruptFileError

HW = (37, 83)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (*HW, 4)).astype(np.uint8)
# Smooth in parts, so that a writer that chooses takes every filter of a row.
SMOOTH = (
    np.add.outer(np.arange(HW[0]) ** 2 / 9, np.arange(HW[1]) * 3)[..., None] + NOISE % 4
) % 256
SMOOTH = SMOOTH.astype(np.uint8)
DEEP = RNG.integers(0, 2**16, (*HW, 4)).astype(np.uint16)


def from_pillow(picture, **options):
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def from_opencv(array):
    return cv2.imencode(".png", array)[1].tobytes()


def palette(bits, **options):
    picture = Image.fromarray(NOISE[..., 0] >> (8 - bits)).convert("P")
    picture.putpalette(RNG.integers(0, 256, 3 * 2**bits).tolist())
    return from_pillow(picture, bits=bits, **options)


def with_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "of a street " * 99)
    return from_pillow(Image.fromarray(SMOOTH[..., :3]), pnginfo=text, dpi=(72, 72))


CONTENTS = {
    "RGB": from_pillow(Image.fromarray(SMOOTH[..., :3])),
    "RGB of OpenCV": from_opencv(SMOOTH[..., :3]),
    "RGB of noise": from_pillow(Image.fromarray(NOISE[..., :3])),
    "RGB, 16 bits": from_opencv(DEEP[..., :3]),
    "RGB with text": with_text(),
    "RGB, one color transparent": from_pillow(
        Image.fromarray(SMOOTH[..., :3]), transparency=(1, 2, 3)
    ),
    "RGBA": from_pillow(Image.fromarray(SMOOTH, "RGBA")),
    "RGBA, 16 bits": from_opencv(DEEP),
    "gray": from_pillow(Image.fromarray(SMOOTH[..., 0])),
    "gray, 16 bits": from_opencv(DEEP[..., 0]),
    "gray, 1 bit": from_pillow(Image.fromarray(NOISE[..., 0] > 127)),
    "gray and alpha": from_pillow(Image.fromarray(SMOOTH[..., :2], "LA")),
    **{f"palette, {bits} bits": palette(bits) for bits in (1, 2, 4, 8)},
    "palette, transparent": palette(8, transparency=3),
}


def decoded(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("kind", CONTENTS)
def test_first_rows_are_those_of_the_whole(kind):
    content = CONTENTS[kind]
    whole, rows = decoded(content), png.rows(content)
    assert rows.hw == whole.shape[:2] == HW
    for count in (1, 2, 18, HW[0] - 1, HW[0], HW[0] + 5):
        np.testing.assert_array_equal(decoded(rows.first(count)), whole[:count], strict=True)


@pytest.mark.parametrize("kind", CONTENTS)
def test_without_compression_a_picture_is_the_same_for_pillow(kind):
    content = CONTENTS[kind]
    assert png.uncompressed(content) != content
    compressed, uncompressed = (
        Image.open(io.BytesIO(content)) for content in (content, png.uncompressed(content))
    )
    assert uncompressed.mode == compressed.mode
    assert uncompressed.getpalette() == compressed.getpalette()
    np.testing.assert_array_equal(np.array(uncompressed), np.array(compressed), strict=True)


def test_data_in_many_blocks_that_decompress_to_many():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    content = from_pillow(Image.fromarray(noise))
    assert content.count(b"IDAT") > 1
    np.testing.assert_array_equal(decoded(png.rows(content).first(150)), noise[:150, :, ::-1])


def test_pixels_that_are_not_stored_from_top_to_bottom_are_not_cut():
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.fromarray(SMOOTH[..., :3])
    assert png.rows(from_pillow(picture, exif=turned)) is None
    assert png.rows(from_pillow(picture, save_all=True, append_images=[picture] * 2)) is None
    content = CONTENTS["RGB"]
    interlaced = content[8:28] + b"\x01"
    assert png.rows(content[:8] + interlaced + content[29:]) is None
    assert png.rows(cv2.imencode(".jpg", NOISE[..., :3])[1].tobytes()) is None


def block(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HEADER = (HW[1], HW[0], 8, 0, 0, 0, 0)  # gray


def raw_png(*data, header=HEADER):
    """A PNG with these compressed data, and right checksums of its blocks."""
    header = struct.pack(">IIBBBBB", *header)
    data = [block(b"IDAT", part) for part in data]
    return b"".join((png.SIGNATURE, block(b"IHDR", header), *data, block(b"IEND", b"")))


ROWS = b"".join(b"\x02" + row.tobytes() for row in SMOOTH[..., 0])  # all of the filter "up"
GOOD = zlib.compress(ROWS)
DAMAGED = {
    "half of the data": GOOD[: len(GOOD) // 2],
    "no checksum of the pixels": GOOD[:-4],
    "a wrong checksum of the pixels": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    "no data": b"",
    "not compressed": ROWS,
    "a row missing": zlib.compress(ROWS[: -HW[1] - 1]),
    "an unknown filter": zlib.compress(b"\x07" + ROWS[1:]),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_data_are_a_corrupt_file_as_for_the_decoder(tmp_path, what):
    path = tmp_path / "street.png"
    path.write_bytes(raw_png(DAMAGED[what]))
    assert png.fault(path.read_bytes()) is None
    assert decoded(path.read_bytes()) is None
    with pytest.raises(CorruptFileError, match=r"street\.png cannot be read"):
        read_image(path)


@pytest.mark.parametrize("field", range(7))
@pytest.mark.parametrize("value", [0, 3, 5, 255])
def test_odd_headers_are_read_as_by_the_decoder(tmp_path, field, value):
    header = [*HEADER]
    header[field] = value
    path = tmp_path / "street.png"
    path.write_bytes(raw_png(GOOD, header=header))
    whole = decoded(path.read_bytes())
    if whole is None:
        with pytest.raises(CorruptFileError, match=r"street\.png cannot be read"):
            read_image(path)
    else:
        np.testing.assert_array_equal(read_image(path), whole, strict=True)


def test_more_data_than_rows_are_read_as_by_the_decoder(tmp_path):
    path = tmp_path / "street.png"
    for content in (raw_png(zlib.compress(2 * ROWS)), raw_png(GOOD + b"more"), raw_png(GOOD, GOOD)):
        path.write_bytes(content)
        whole = decoded(content)
        assert whole is not None
        for count in (5, HW[0]):
            image = OpenedImage(path).first_rows(count)
            np.testing.assert_array_equal(image[:count], whole[:count], strict=True)
