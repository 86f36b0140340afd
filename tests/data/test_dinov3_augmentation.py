"""The distortions of DINOv3's training images against their definitions."""

import colorsys

import numpy as np
import pytest

from jaxseg.data import transforms
from support.batches import make_config

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_saturation_is_a_mixture_with_the_gray_image(share):
    blue, green, red = np.moveaxis(IMAGE.astype(float), -1, 0)
    gray = np.floor(0.2989 * red + 0.587 * green + 0.114 * blue)[..., None]
    expected = np.clip(share * IMAGE + (1 - share) * gray, 0, 255)
    found = transforms.mix_with_gray(IMAGE, share)
    assert np.all(np.abs(found - np.floor(expected + 1e-6)) <= 1)
    assert np.mean(found == np.floor(expected + 1e-6)) > 0.999  # float32 rounds a few otherwise


@pytest.mark.parametrize("turn", [-0.5, 0.1, 0.5])
def test_hue_turns_by_a_share_of_the_circle(turn):
    found = transforms.turn_hue(IMAGE, turn)
    for pixel, turned in zip(IMAGE[:5].reshape(-1, 3), found[:5].reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel[::-1] / 255.0))
        expected = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))[::-1] * 255
        assert np.all(np.abs(turned - expected) <= 1)


def test_images_are_resized_smoothly_and_distorted():
    config = make_config("", crop_hw=(32, 32), scale_wh=(128, 32), augmentation="dinov3")
    label = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60) % 5
    drawn = [
        transforms.train_transform(lambda rows: IMAGE, label, config, np.random.default_rng(seed))
        for seed in (0, 0, 1)
    ]
    for image, cropped in drawn:
        assert (image.shape, cropped.shape) == ((32, 32, 3), (32, 32))
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert not np.array_equal(drawn[0][0], drawn[2][0])
