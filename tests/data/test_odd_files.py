"""Pictures of unusual kinds: each is read as stated here, or refused with the reason."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.decoding import pictures, png
from jaxseg.data.samples import read_label, read_sample
from jaxseg.data.source import Source, find_samples
from jaxseg.errors import CorruptFileError, DataError
from support.tiny_datasets import HW, only_sample, write_ade20k, write_cityscapes, write_photograph

NOISE = np.random.default_rng(0).integers(0, 256, (*HW, 4)).astype(np.uint8)
VALUES = np.arange(HW[0] * HW[1], dtype=np.uint8).reshape(HW) % 34


def read(tmp_path):
    return read_sample(only_sample(tmp_path))


def with_image(tmp_path, picture):
    """What is read of an image that lies as this picture in a PNG file."""
    path, _ = write_cityscapes(tmp_path, "ulm_000000_000019")
    picture.save(path)
    return read(tmp_path)[0]


def with_label(tmp_path, picture):
    """The train ids that are read of a label that lies as this picture in a PNG file."""
    _, path = write_cityscapes(tmp_path, "ulm_000000_000019")
    picture.save(path)
    return read(tmp_path)[1]


def test_a_gray_image_has_three_equal_channels(tmp_path):
    image = with_image(tmp_path, Image.fromarray(NOISE[..., 0]))
    np.testing.assert_array_equal(image, np.repeat(NOISE[..., :1], 3, axis=2), strict=True)


def test_transparency_is_left_out(tmp_path):
    image = with_image(tmp_path, Image.fromarray(NOISE, "RGBA"))
    np.testing.assert_array_equal(image, NOISE[..., 2::-1], strict=True)


def test_an_image_with_a_palette_has_its_colors(tmp_path):
    picture = Image.fromarray(VALUES).convert("P")
    picture.putpalette(np.repeat(np.arange(256), 3).reshape(256, 3)[:, ::-1].ravel().tolist())
    image = with_image(tmp_path, picture)
    np.testing.assert_array_equal(image, np.repeat(VALUES[..., None], 3, axis=2), strict=True)


def test_an_image_of_16_bits_keeps_the_upper_8(tmp_path):
    deep = np.random.default_rng(1).integers(0, 2**16, (*HW, 3)).astype(np.uint16)
    path, _ = write_cityscapes(tmp_path, "ulm_000000_000019")
    cv2.imwrite(str(path), deep)
    np.testing.assert_array_equal(read(tmp_path)[0], (deep >> 8).astype(np.uint8), strict=True)


def test_a_photograph_is_turned_by_its_metadata_and_its_label_is_not(tmp_path):
    image, label = write_ade20k(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(image, exif=exif)
    (sample,) = find_samples("ade20k", tmp_path, "training")
    with pytest.raises(DataError, match="rotated according to their EXIF data") as error:
        read_sample(sample)
    assert f"{image}: {HW[::-1]}" in str(error.value)
    Image.fromarray(np.zeros(HW[::-1], np.uint8)).save(label)
    assert read_sample(sample)[1].shape == HW[::-1]


def test_a_label_of_16_bits_counts_by_its_values(tmp_path):
    expected = with_label(tmp_path, Image.fromarray(VALUES))
    deep = with_label(tmp_path, Image.fromarray(VALUES.astype(np.uint16)))
    np.testing.assert_array_equal(deep, expected, strict=True)


def test_a_label_of_16_bits_with_higher_values_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"values from 7 to 26000, .* instances"):
        with_label(tmp_path, Image.fromarray(np.where(VALUES, np.uint16(26000), np.uint16(7))))


def test_a_label_with_a_palette_counts_by_its_indices(tmp_path):
    expected = with_label(tmp_path, Image.fromarray(VALUES))
    picture = Image.fromarray(VALUES).convert("P")
    picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    np.testing.assert_array_equal(with_label(tmp_path, picture), expected, strict=True)


def test_a_label_of_one_bit_has_the_values_0_and_1(tmp_path):
    files = "images/training/a.png", "annotations/training/a_1stHO.png"
    write_photograph(tmp_path, *files)
    bits = VALUES % 2 == 1
    Image.fromarray(bits).save(tmp_path / files[1])
    (sample,) = find_samples("chase_db1", tmp_path, "training")
    np.testing.assert_array_equal(read_label(sample), bits.astype(np.uint8), strict=True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_label_with_several_channels_is_refused(tmp_path, mode):
    with pytest.raises(DataError, match="is not a label: it has the shape"):
        with_label(tmp_path, Image.fromarray(NOISE, "RGBA").convert(mode))


def test_a_label_without_any_class_is_all_ignored(tmp_path):
    assert (with_label(tmp_path, Image.fromarray(np.zeros(HW, np.uint8))) == 255).all()


def test_an_image_without_a_label_is_all_ignored(tmp_path):
    image, _ = write_cityscapes(tmp_path, "ulm_000000_000019", split="test")
    source = Source(CITYSCAPES, str(tmp_path), "test", labeled=False)
    (sample,) = source.samples()
    assert (sample.name, sample.image) == ("ulm_000000_000019", image)
    found, label = read_sample(sample)
    np.testing.assert_array_equal(found, cv2.imread(str(image)), strict=True)
    np.testing.assert_array_equal(label, np.full(HW, 255, np.uint8), strict=True)


@pytest.mark.parametrize("seed", range(8))
def test_a_motion_photo_is_read_without_its_video(tmp_path, seed):
    random = np.random.default_rng(seed)
    photo = cv2.imencode(".jpg", random.integers(0, 256, (*HW, 3)).astype(np.uint8))[1].tobytes()
    alone, moving = tmp_path / "alone.jpg", tmp_path / "moving.jpg"
    alone.write_bytes(photo)
    moving.write_bytes(photo + b"\0\0\0\x18ftypmp42" + random.bytes(200_000))
    np.testing.assert_array_equal(pictures.read_image(moving), pictures.read_image(alone))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_early_is_refused_whatever_follows(tmp_path, progressive):
    path, content = tmp_path / "a.jpg", io.BytesIO()
    Image.fromarray(NOISE[..., :3]).save(content, "JPEG", progressive=progressive)
    path.write_bytes(content.getvalue()[:-60])
    with pytest.raises(CorruptFileError, match=r"a\.jpg cannot be read: it ends early"):
        pictures.read_image(path)


def test_a_label_of_floats_is_read_if_they_are_whole_numbers(tmp_path):
    path = tmp_path / "label.tif"
    Image.fromarray(VALUES.astype(np.float32)).save(path)
    np.testing.assert_array_equal(pictures.read_raw_label(path), VALUES, strict=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "NaN in 1 of 48 pixels"),
        (1.7, "fractions such as 1.7"),
        (np.inf, "values from 0.0 to inf"),
        (-9999, "values from -9999.0 to 33.0"),
    ],
)
def test_a_label_of_other_floats_is_refused_with_what_it_holds(tmp_path, value, said):
    label = VALUES.astype(np.float32)
    label[2, 3] = value
    path = tmp_path / "label.tif"
    Image.fromarray(label).save(path)
    with pytest.raises(DataError, match=f"label.tif is not a label: it holds .*{said}"):
        pictures.read_raw_label(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_16_bits_with_few_of_them_used_are_no_picture(tmp_path, suffix, bits):
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), np.full((*HW, 3), 2**bits - 1, np.uint16))
    with pytest.raises(CorruptFileError, match=f"largest value is {2**bits - 1} of 65535"):
        pictures.read_image(path)


def test_an_image_of_floats_is_refused(tmp_path):
    path = tmp_path / "float.tif"
    cv2.imwrite(str(path), np.ones((*HW, 3), np.float32))
    with pytest.raises(CorruptFileError, match="its values are float32"):
        pictures.read_image(path)


def test_a_large_label_is_read(tmp_path):
    """Pillow would refuse it as a bomb."""
    hw = (13_500, 13_500)
    Image.fromarray(np.broadcast_to(np.uint8(3), hw)).save(tmp_path / "large.png", compress_level=1)
    with warnings.catch_warnings(action="error"):
        assert pictures.raw_label_hw(tmp_path / "large.png") == hw
        assert (pictures.read_raw_label(tmp_path / "large.png")[::1000] == 3).all()


def png_of(height, width, interlaced):
    """A PNG whose header is sound, with the data of a few rows."""

    def block(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I4s", len(content), kind) + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    data = zlib.compress(bytes(1000))
    return png.SIGNATURE + block(b"IHDR", header) + block(b"IDAT", data) + block(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("hw", [(30_000, 40_000), (30_000, 30_000)])
def test_a_picture_beyond_all_limits_is_refused_by_its_header(tmp_path, hw, interlaced):
    path = tmp_path / "giga.png"
    path.write_bytes(png_of(*hw, interlaced))
    for read_picture in (pictures.read_image, pictures.read_raw_label):
        with pytest.raises(CorruptFileError, match=rf"giga\.png .*claims {hw[0]}x{hw[1]} pixels"):
            read_picture(path)
