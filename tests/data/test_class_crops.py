"""Crops at a class that is drawn evenly from those of an image."""

import types

import numpy as np
import pytest

from jaxseg.data import transforms

RARE = np.zeros((60, 80), np.uint8)  # one class, but for 12 pixels of a second and 12 of a third
RARE[30:33, 40:44], RARE[:3, :4], RARE[50:] = 1, 2, 255


@pytest.mark.parametrize("hw", [(60, 80), (33, 44), (150, 200)])
def test_crops_of_classes_show_each_class_of_an_image_as_often(hw):
    rng = np.random.default_rng(0)
    shown = np.zeros(3)
    for _ in range(600):
        box, window = transforms.class_crop(RARE, hw, (20, 24), rng)
        np.testing.assert_array_equal(window, transforms.resize_label_box(RARE, hw, box))
        for side, size, crop in zip(box, hw, (20, 24), strict=True):
            assert 0 <= side.start <= max(size - crop, 0)
            assert side.stop - side.start == crop
        shown += [(window == k).any() for k in range(3)]
    # Each is drawn in a third of the cases; the first one is also around the others.
    assert shown[0] > 500
    assert (shown[1:] > 170).all()


def test_a_crop_of_an_image_without_a_class_lies_anywhere():
    rng = np.random.default_rng(0)
    empty = np.full((60, 80), 255, np.uint8)
    boxes = {transforms.class_crop(empty, (60, 80), (20, 24), rng)[0][0].start for _ in range(50)}
    assert len(boxes) > 10


def test_crops_of_classes_are_drawn_with_their_probability():
    config = types.SimpleNamespace(
        scale_wh=(80, 60),
        ratio_range=(1.0, 1.0),
        crop_hw=(8, 8),
        cat_max_ratio=1.0,
        augmentation="mmseg",
        class_crop_probability=0.5,
        flip_probability=0.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    image = np.zeros((60, 80, 3), np.uint8)
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(300):
        _, label = transforms.train_transform(lambda rows: image[:rows], RARE, config, rng)
        count += bool(np.isin(label, [1, 2]).any())
    assert 0.5 * 2 / 3 * 300 * 0.75 < count < 200
