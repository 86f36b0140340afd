"""Training and test transforms: NumPy arrays in, NumPy arrays out, the reference's arithmetic.

Images are uint8 [h, w, 3] in BGR until `normalize`, labels uint8 [h, w]. The random ones draw from
`rng`, a `numpy.random.Generator`, in the order in which the reference (mmsegmentation 0.27 with
mmcv 1.7) draws, so that the same draws give the same pixels.
"""

import math

import cv2
import numpy as np

from jaxseg.data.datasets.description import IGNORE

Image = np.ndarray
Label = np.ndarray


def train_transform(first_rows, label: Label, config, rng) -> tuple[Image, Label]:
    """A random crop of a random size: float32 [H, W, 3] in RGB and uint8 [H, W], [H, W] = crop_hw.

    Where the crop lies is decided by the label; of the image, only what it takes is asked for.

    first_rows: given a number, as many rows of the image from its top, or more: uint8 [n, w, 3].
    label: of the size of the whole image.
    config: has scale_wh, ratio_range, crop_hw, cat_max_ratio, flip_probability, mean and std.
    """
    source_hw = label.shape
    hw = resized_hw(source_hw, random_scale(config.scale_wh, config.ratio_range, rng))
    box, label = random_crop(label, hw, config.crop_hw, config.cat_max_ratio, rng)
    image = resize_box(first_rows, source_hw, hw, box)
    image, label = random_flip(image, label, config.flip_probability, rng)
    image = photometric_distortion(image, rng)
    image = normalize(image, config.mean, config.std)
    return pad(image, config.crop_hw, 0), pad(label, config.crop_hw, IGNORE)


def test_transform(image: Image, config) -> Image:
    """The whole image at test size: float32 [h', w', 3] in RGB.

    config: has test_scale_wh, test_multiple, mean and std.
    """
    image = resize_to_multiple(resize(image, config.test_scale_wh), config.test_multiple)
    return normalize(image, config.mean, config.std)


def scaled(scale_wh, ratio: float) -> tuple[int, int]:
    """`scale_wh` times a ratio, each side truncated."""
    return int(scale_wh[0] * ratio), int(scale_wh[1] * ratio)


def random_scale(scale_wh, ratio_range, rng) -> tuple[int, int]:
    """`scale_wh` times one random ratio from `ratio_range`."""
    low, high = ratio_range
    return scaled(scale_wh, rng.random() * (high - low) + low)


def resized_hw(hw, scale_wh) -> tuple[int, int]:
    """The largest size of the same shape within `scale_wh`, whose two sides bound in any order:
    its longer side the longer one of the image, its shorter side the shorter one."""
    factor = min(max(scale_wh) / max(hw), min(scale_wh) / min(hw))
    return int(hw[0] * factor + 0.5), int(hw[1] * factor + 0.5)


def short_side_hw(hw, scale_wh, shortest: int) -> tuple[int, int]:
    """The size of the same shape whose shorter side is that of `scale_wh`, or `shortest` where that
    is more; the longer side of `scale_wh` bounds nothing (SETR_Resize of the reference)."""
    short = max(min(scale_wh), shortest)
    return resized_hw(hw, (short * max(hw) / min(hw), short))


def resize(image: Image, scale_wh) -> Image:
    """Bilinear, without anti-aliasing, to `resized_hw`."""
    return resize_to(image, resized_hw(image.shape[:2], scale_wh))


def resize_to(image: Image, hw) -> Image:
    """Bilinear, without anti-aliasing, to exactly this height and width."""
    if tuple(hw) == image.shape[:2]:
        return image
    return cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)


def resize_box(first_rows, source_hw, hw, box) -> Image:
    """`resize_to(image, hw)[box]`, to the bit, from the upper left part of the image alone.

    first_rows: as for `train_transform`, of an image of `source_hw`.
    box: two slices, which may reach beyond `hw`.
    """
    # With the ratios of the whole image, OpenCV takes every pixel from where it would there.
    ratio_y, ratio_x = hw[0] / source_hw[0], hw[1] / source_hw[1]
    # Two more: one for the pixel on the other side, and one since OpenCV rounds the size.
    rows = min(math.ceil(min(box[0].stop, hw[0]) / ratio_y) + 2, source_hw[0])
    columns = min(math.ceil(min(box[1].stop, hw[1]) / ratio_x) + 2, source_hw[1])
    part = first_rows(rows)[:rows, :columns]
    if tuple(hw) != tuple(source_hw):
        part = cv2.resize(part, None, fx=ratio_x, fy=ratio_y, interpolation=cv2.INTER_LINEAR)
    return part[box]


def resize_label_box(label: Label, hw, box) -> Label:
    """A box of the label at `hw`, by nearest neighbor (without the half-pixel center)."""
    rows, columns = (
        np.minimum(np.arange(size)[side] * (1 / (size / source)), source - 1).astype(np.intp)
        for source, size, side in zip(label.shape, hw, box, strict=True)
    )
    return label[rows].take(columns, axis=1)


def resize_to_multiple(image: Image, multiple: int) -> Image:
    """Bilinear, each side stretched up to the next multiple; the shape changes a little."""
    return resize_to(image, multiple_hw(image.shape[:2], multiple))


def multiple_hw(hw, multiple: int) -> tuple[int, int]:
    """The smallest multiples that are not below the two sides."""
    return -(-hw[0] // multiple) * multiple, -(-hw[1] // multiple) * multiple


def random_crop(label: Label, hw, crop_hw, cat_max_ratio, rng) -> tuple[tuple, Label]:
    """A random window of the label at `hw` in which no class covers `cat_max_ratio` or more: its
    box, and the label in it; smaller than `crop_hw` where `hw` is.

    After ten windows that fail, the eleventh is taken as it is. Ignored pixels do not count, and a
    window with fewer than two classes fails.
    """
    for _ in range(11):
        box = _random_box(hw, crop_hw, rng)
        window = resize_label_box(label, hw, box)
        if cat_max_ratio >= 1 or _largest_share(window) < cat_max_ratio:
            break
    return box, window


def _largest_share(label: Label) -> float:
    """The part of the pixels that the most frequent class has; 1 where there is none."""
    counts = cv2.calcHist([label], [0], None, [256], [0, 256])[:IGNORE].astype(np.int64)
    return counts.max() / counts.sum() if counts.any() else 1.0


def _random_box(hw, crop_hw, rng) -> tuple[slice, slice]:
    # Both are always drawn, also where the image is no larger than the crop.
    top = int(rng.integers(0, max(hw[0] - crop_hw[0], 0) + 1))
    left = int(rng.integers(0, max(hw[1] - crop_hw[1], 0) + 1))
    return slice(top, top + crop_hw[0]), slice(left, left + crop_hw[1])


def random_flip(image: Image, label: Label, probability, rng) -> tuple[Image, Label]:
    """Mirrored left to right, or not."""
    if rng.random() < probability:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


def photometric_distortion(image: Image, rng) -> Image:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2.

    Contrast comes before or after the two steps in HSV, with probability 1/2 each. Every step goes
    back to uint8, as in the reference; so does the trip to HSV, which costs up to 3 levels.
    """
    if rng.integers(2):
        image = brightness(image, rng.uniform(-32, 32))
    contrast_first = rng.integers(2)
    if contrast_first and rng.integers(2):
        image = contrast(image, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        image = saturation(image, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        image = hue(image, int(rng.integers(-18, 18)))
    if not contrast_first and rng.integers(2):
        image = contrast(image, rng.uniform(0.5, 1.5))
    return image


def brightness(image: Image, beta: float) -> Image:
    return cv2.LUT(image, _scaled_levels(1.0, beta))


def contrast(image: Image, alpha: float) -> Image:
    return cv2.LUT(image, _scaled_levels(alpha, 0.0))


def saturation(image: Image, alpha: float) -> Image:
    return _change_hsv(image, 1, _scaled_levels(alpha, 0.0))


def hue(image: Image, delta: int) -> Image:
    """delta: in OpenCV's unit of two degrees."""
    return _change_hsv(image, 0, ((np.arange(256) + delta) % 180).astype(np.uint8))


def _scaled_levels(alpha: float, beta: float) -> np.ndarray:
    """uint8 [256]: every level times alpha plus beta, clipped and truncated (not rounded)."""
    levels = np.arange(256, dtype=np.float32) * alpha + beta
    return np.clip(levels, 0, 255).astype(np.uint8)


def _change_hsv(image: Image, channel: int, table: np.ndarray) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., channel] = cv2.LUT(hsv[..., channel], table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def normalize(image: Image, mean, std) -> Image:
    """BGR uint8 -> RGB float32, (x − mean) / std per channel; mean and std are in RGB order."""
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    # A table of the 256 levels: exact, and faster than the arithmetic on every pixel.
    levels = np.arange(256, dtype=np.float32)[:, None] - mean
    levels = (levels * (1 / std.astype(np.float64))).astype(np.float32)
    return cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), levels[:, None])


def pad(array: np.ndarray, hw, value) -> np.ndarray:
    """Filled up with `value` at the bottom and on the right to at least `hw`."""
    height, width = array.shape[:2]
    extra = ((0, max(hw[0] - height, 0)), (0, max(hw[1] - width, 0)))
    if extra == ((0, 0), (0, 0)):
        return array
    return np.pad(array, extra + ((0, 0),) * (array.ndim - 2), constant_values=value)
