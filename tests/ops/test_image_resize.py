"""Images are resized and normalized in a compiled program with the bits of OpenCV."""

import cv2
import jax
import numpy as np
import pytest

from jaxseg.data import transforms
from jaxseg.ops.image_resize import normalize_image, resize_image

SIZES = [
    ((37, 53), (64, 96)),
    ((64, 96), (37, 53)),
    ((50, 40), (25, 20)),  # OpenCV averages four pixels
    ((50, 40), (25, 40)),
    ((1, 23), (58, 9)),
    ((7, 1), (5, 6)),
    ((17, 263), (192, 176)),
    ((33, 20), (99, 60)),
    ((101, 203), (101, 31)),
]


@pytest.mark.parametrize(("hw", "out_hw"), SIZES)
def test_resizing_gives_the_bits_of_opencv(hw, out_hw):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3)).astype(np.uint8)
    expected = cv2.resize(image, out_hw[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_image(image[None], out_hw)[0], expected)


def test_normalizing_gives_the_bits_of_the_transform():
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    levels = transforms.normalized_levels(mean, std)
    found = jax.jit(lambda images: normalize_image(images, levels))(image[None])[0]
    expected = transforms.normalize(np.ascontiguousarray(image[..., ::-1]), mean, std)
    np.testing.assert_array_equal(found, expected)
