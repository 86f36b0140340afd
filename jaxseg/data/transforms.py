"""Transforms NumPy images and labels for training and testing, with the reference's arithmetic.

Images are uint8 [h, w, 3] in BGR until `normalize`. Labels are uint8 [h, w]. Random transforms draw
from `rng`, a `numpy.random.Generator`. They draw in the order of the reference (mmsegmentation 0.27
with mmcv 1.7), so the same draws give the same pixels.
"""

import math

import cv2
import numpy as np
import PIL.Image

from jaxseg.data.datasets.description import IGNORE

AUGMENTATIONS = ("mmseg", "dinov3")  # values of `config.data.augmentation`
Image = np.ndarray
Label = np.ndarray


def train_transform(first_rows, label: Label, config, rng) -> tuple[Image, Label]:
    """Returns a random crop of a randomly resized sample, augmented and normalized.

    The label decides where the crop lies. Only the image rows that the crop needs are requested.

    Args:
      first_rows: a function that takes a number and returns at least as many rows of the image from
        its top, uint8 [n, w, 3].
      label: the label of the whole image.
      config: has scale_wh, ratio_range, crop_hw, cat_max_ratio, class_crop_probability,
        flip_probability, augmentation, mean and std.

    Returns:
      The image, float32 [H, W, 3] in RGB, and the label, uint8 [H, W], where (H, W) is `crop_hw`.
    """
    source_hw = label.shape
    scale_wh = random_scale(config.scale_wh, config.ratio_range, rng)
    is_mmseg = config.augmentation == "mmseg"
    hw = resized_hw(source_hw, scale_wh)
    if not is_mmseg:
        hw = exact_short_side_hw(source_hw, min(scale_wh))
    if config.class_crop_probability and rng.random() < config.class_crop_probability:
        box, label = class_crop(label, hw, config.crop_hw, rng)
    else:
        box, label = random_crop(label, hw, config.crop_hw, config.cat_max_ratio, rng)
    if is_mmseg:
        image = resize_box(first_rows, source_hw, hw, box)
    else:
        image = resize_smoothly(first_rows(source_hw[0]), hw)[box]
    image, label = random_flip(image, label, config.flip_probability, rng)
    image = (photometric_distortion if is_mmseg else dinov3_distortion)(image, rng)
    image = normalize(image, config.mean, config.std)
    return pad(image, config.crop_hw, 0), pad(label, config.crop_hw, IGNORE)


def test_transform(image: Image, config) -> Image:
    """Returns the whole image at test size, normalized: float32 [h', w', 3] in RGB.

    Args:
      config: has test_scale_wh, test_multiple, mean and std.
    """
    image = resize_to_multiple(resize(image, config.test_scale_wh), config.test_multiple)
    return normalize(image, config.mean, config.std)


def scaled(scale_wh, ratio: float) -> tuple[int, int]:
    """Returns `scale_wh` times a ratio, with each side truncated to an integer."""
    return int(scale_wh[0] * ratio), int(scale_wh[1] * ratio)


def random_scale(scale_wh, ratio_range, rng) -> tuple[int, int]:
    """Returns `scale_wh` times one random ratio from `ratio_range`."""
    low, high = ratio_range
    return scaled(scale_wh, rng.random() * (high - low) + low)


def resized_hw(hw, scale_wh) -> tuple[int, int]:
    """Returns the largest (height, width) of the same aspect ratio that fits within `scale_wh`.

    The sides of `scale_wh` may come in any order. The longer one limits the image's longer side,
    and the shorter one limits its shorter side.
    """
    factor = min(max(scale_wh) / max(hw), min(scale_wh) / min(hw))
    # The reference rounds to 0 for pictures that are 4000 times as long as wide, and then fails.
    return max(int(hw[0] * factor + 0.5), 1), max(int(hw[1] * factor + 0.5), 1)


def short_side_hw(hw, scale_wh, shortest: int) -> tuple[int, int]:
    """Returns the (height, width) of the same aspect ratio that has a given shorter side.

    The shorter side is that of `scale_wh`, or `shortest` if that is larger. The longer side of
    `scale_wh` limits nothing. The reference calls this SETR_Resize.
    """
    short = max(min(scale_wh), shortest)
    return resized_hw(hw, (short * max(hw) / min(hw), short))


def exact_short_side_hw(hw, side: int, ratio: float = 1.0) -> tuple[int, int]:
    """Returns the (height, width) of the same aspect ratio as DINOv3 chooses it.

    Its shorter side is `side` times the ratio. For a ratio below 1, it is rounded up to the next
    multiple of 32.
    """
    short = int(side * ratio)
    if ratio < 1:
        short = -(short // -32) * 32
    long = int(short * max(hw) / min(hw) + 0.5)
    return (short, long) if hw[0] <= hw[1] else (long, short)


def resize(image: Image, scale_wh) -> Image:
    """Resizes an image to `resized_hw`, bilinearly and without anti-aliasing."""
    return resize_to(image, resized_hw(image.shape[:2], scale_wh))


def resize_to(image: Image, hw) -> Image:
    """Resizes an image to an exact (height, width), bilinearly and without anti-aliasing."""
    if tuple(hw) == image.shape[:2]:
        return image
    return cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)


def resize_smoothly(image: Image, hw) -> Image:
    """Resizes an image to an exact (height, width) with Pillow: bilinearly, with anti-aliasing."""
    if tuple(hw) == image.shape[:2]:
        return image
    resized = PIL.Image.fromarray(image).resize((hw[1], hw[0]), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize_box(first_rows, source_hw, hw, box) -> Image:
    """Returns the same bits as `resize_to(image, hw)[box]`, but resizes only a part of the image.

    That part is the upper left corner, down to the end of the box.

    Args:
      first_rows: as in `train_transform`.
      source_hw: the (height, width) of the whole image.
      hw: the (height, width) of the whole image after resizing.
      box: two slices, which may reach beyond `hw`.
    """
    # With the ratios of the whole image, OpenCV samples every pixel at the same source position.
    ratio_y, ratio_x = hw[0] / source_hw[0], hw[1] / source_hw[1]
    # Two extra: one for the second pixel of the interpolation, one since OpenCV rounds the size.
    rows = min(math.ceil(min(box[0].stop, hw[0]) / ratio_y) + 2, source_hw[0])
    columns = min(math.ceil(min(box[1].stop, hw[1]) / ratio_x) + 2, source_hw[1])
    part = first_rows(rows)[:rows, :columns]
    if tuple(hw) != tuple(source_hw):
        part = cv2.resize(part, None, fx=ratio_x, fy=ratio_y, interpolation=cv2.INTER_LINEAR)
    return part[box]


def resize_label_box(label: Label, hw, box) -> Label:
    """Returns a box of the label resized to `hw`.

    It takes the nearest neighbor, without the half-pixel center.
    """
    rows, columns = (
        np.minimum(np.arange(size)[side] * (1 / (size / source)), source - 1).astype(np.intp)
        for source, size, side in zip(label.shape, hw, box, strict=True)
    )
    return label[rows].take(columns, axis=1)


def resize_to_multiple(image: Image, multiple: int) -> Image:
    """Stretches each side of an image to the next multiple, bilinearly.

    The aspect ratio changes slightly.
    """
    return resize_to(image, multiple_hw(image.shape[:2], multiple))


def multiple_hw(hw, multiple: int) -> tuple[int, int]:
    """Returns (height, width), each rounded up to the next multiple."""
    height, width = (int(-(-side // multiple) * multiple) for side in hw)
    return height, width


def random_crop(label: Label, hw, crop_hw, cat_max_ratio, rng) -> tuple[tuple, Label]:
    """Draws a random window of the label resized to `hw` in which no class dominates.

    A window fails if one class covers the share `cat_max_ratio` or more of it, or if it has fewer
    than two classes. Ignored pixels do not count. After ten failures, the eleventh window is taken
    as it is.

    Returns:
      The window's box, two slices, and the label in it. The label is smaller than `crop_hw` where
      `hw` is smaller.
    """
    for _ in range(11):
        box = _random_box(hw, crop_hw, rng)
        window = resize_label_box(label, hw, box)
        if cat_max_ratio >= 1 or _largest_share(window) < cat_max_ratio:
            break
    return box, window


def class_crop(label: Label, hw, crop_hw, rng) -> tuple[tuple, Label]:
    """Draws a window of the label resized to `hw` that shows a class drawn evenly from its classes.

    The window has a pixel of this class, drawn evenly, at a random place; a smaller label may leave
    it out. So a rare class is seen as often as a frequent one of the same image. The reference has
    nothing like it.

    Returns:
      As `random_crop`.
    """
    present = np.flatnonzero(cv2.calcHist([label], [0], None, [256], [0, 256])[:IGNORE])
    if len(present):
        pixels = np.flatnonzero(label == rng.choice(present))
        pixel = np.unravel_index(rng.choice(pixels), label.shape)
    else:
        pixel = tuple(int(rng.integers(side)) for side in label.shape)
    starts = []
    for place, source, side, crop in zip(pixel, label.shape, hw, crop_hw, strict=True):
        center = min(math.ceil(place * side / source), side - 1)  # where `resize_label_box` has it
        start = center - int(rng.integers(min(crop, side)))
        starts.append(min(max(start, 0), max(side - crop, 0)))
    box = tuple(slice(start, start + crop) for start, crop in zip(starts, crop_hw, strict=True))
    return box, resize_label_box(label, hw, box)


def _largest_share(label: Label) -> float:
    """Returns the most frequent class's share of the labeled pixels, or 1 if there are none."""
    counts = cv2.calcHist([label], [0], None, [256], [0, 256])[:IGNORE].astype(np.int64)
    return counts.max() / counts.sum() if counts.any() else 1.0


def _random_box(hw, crop_hw, rng) -> tuple[slice, slice]:
    # Both numbers are always drawn, even if the image is no larger than the crop.
    top = int(rng.integers(0, max(hw[0] - crop_hw[0], 0) + 1))
    left = int(rng.integers(0, max(hw[1] - crop_hw[1], 0) + 1))
    return slice(top, top + crop_hw[0]), slice(left, left + crop_hw[1])


def random_flip(image: Image, label: Label, probability, rng) -> tuple[Image, Label]:
    """Mirrors an image and its label left to right, with the given probability."""
    if rng.random() < probability:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


def photometric_distortion(image: Image, rng) -> Image:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes before or after the two steps in HSV, with probability 1/2 each. Every step
    returns to uint8, as in the reference. The conversion to HSV and back also does, and changes a
    pixel by up to 3 levels.
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


def dinov3_distortion(image: Image, rng) -> Image:
    """Changes an image as `photometric_distortion`, but saturation and hue as DINOv3 does.

    Saturation is a mixture with the gray image, and the hue may turn by the full circle, both as
    torchvision computes them.
    """
    if rng.integers(2):
        image = brightness(image, rng.uniform(-32, 32))
    contrast_first = rng.integers(2)
    if contrast_first and rng.integers(2):
        image = contrast(image, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        image = mix_with_gray(image, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        image = turn_hue(image, rng.uniform(-0.5, 0.5))
    if not contrast_first and rng.integers(2):
        image = contrast(image, rng.uniform(0.5, 1.5))
    return image


def mix_with_gray(image: Image, share: float) -> Image:
    """Returns `share` times an image plus (1 - `share`) times its gray levels."""
    blue, green, red = (image[..., i].astype(np.float32) for i in range(3))
    gray = np.floor(0.2989 * red + 0.587 * green + 0.114 * blue)[..., None]
    mixed = share * image.astype(np.float32) + (1 - share) * gray
    return np.clip(mixed, 0, 255).astype(np.uint8)


def turn_hue(image: Image, turn: float) -> Image:
    """Turns the hue of an image.

    Args:
      image: in BGR.
      turn: by how much, as a share of the circle.
    """
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    turned = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return np.clip(turned * 255.999, 0, 255).astype(np.uint8)


def brightness(image: Image, beta: float) -> Image:
    """Adds `beta` levels to every value of an image."""
    return cv2.LUT(image, _scaled_levels(1.0, beta))


def contrast(image: Image, alpha: float) -> Image:
    """Multiplies every value of an image by `alpha`."""
    return cv2.LUT(image, _scaled_levels(alpha, 0.0))


def saturation(image: Image, alpha: float) -> Image:
    """Multiplies the saturation of an image, its second channel in HSV, by `alpha`."""
    return _change_hsv(image, 1, _scaled_levels(alpha, 0.0))


def hue(image: Image, delta: int) -> Image:
    """Shifts the hue of an image.

    Args:
      delta: the shift, in OpenCV's unit of two degrees.
    """
    return _change_hsv(image, 0, ((np.arange(256) + delta) % 180).astype(np.uint8))


def _scaled_levels(alpha: float, beta: float) -> np.ndarray:
    """Returns each of the 256 levels times alpha plus beta, uint8 [256].

    The results are clipped and truncated, not rounded.
    """
    levels = np.arange(256, dtype=np.float32) * alpha + beta
    return np.clip(levels, 0, 255).astype(np.uint8)


def _change_hsv(image: Image, channel: int, table: np.ndarray) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., channel] = cv2.LUT(hsv[..., channel], table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def normalize(image: Image, mean, std) -> Image:
    """Converts a uint8 image in BGR to float32 in RGB, (x − mean) / std per channel.

    Args:
      mean: one value per channel, in RGB order.
      std: one value per channel, in RGB order.
    """
    # A table of the 256 levels is exact, and faster than arithmetic on every pixel.
    levels = normalized_levels(mean, std)
    return cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), levels[:, None])


def normalized_levels(mean, std) -> np.ndarray:
    """Returns (x − mean) / std of all 256 values x of a pixel, float32 [256, 3] in RGB order."""
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    levels = np.arange(256, dtype=np.float32)[:, None] - mean
    return (levels * (1 / std.astype(np.float64))).astype(np.float32)


def pad(array: np.ndarray, hw, value) -> np.ndarray:
    """Pads an array with `value` at the bottom and on the right, to at least `hw`."""
    height, width = array.shape[:2]
    extra = ((0, max(hw[0] - height, 0)), (0, max(hw[1] - width, 0)))
    if extra == ((0, 0), (0, 0)):
        return array
    return np.pad(array, extra + ((0, 0),) * (array.ndim - 2), constant_values=value)
