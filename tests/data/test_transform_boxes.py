"""A box of a resized picture equals that box of the whole, to the bit."""

import cv2
import numpy as np
import pytest

from jaxseg.data import transforms


def check_random_box(rng, source_hw, hw, crop_hw):
    """A box of a resized picture, made from what it takes and cut out of the whole."""
    top = int(rng.integers(max(hw[0] - crop_hw[0], 0) + 1))
    left = int(rng.integers(max(hw[1] - crop_hw[1], 0) + 1))
    box = slice(top, top + crop_hw[0]), slice(left, left + crop_hw[1])
    image = rng.integers(0, 256, (*source_hw, 3)).astype(np.uint8)
    label = rng.integers(0, 256, source_hw).astype(np.uint8)
    asked = []

    def first_rows(count):
        asked.append(count)
        return image[:count]

    boxes = (
        transforms.resize_box(first_rows, source_hw, hw, box),
        transforms.resize_label_box(label, hw, box),
    )
    wholes = (
        cv2.resize(image, hw[::-1], interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, hw[::-1], interpolation=cv2.INTER_NEAREST),
    )
    for part, whole in zip(boxes, wholes, strict=True):
        np.testing.assert_array_equal(part, whole[box], err_msg=f"{source_hw} {hw} {box}")
    # Three rows at most beyond those that the box covers.
    (count,) = asked
    assert count < min(box[0].stop, hw[0]) / hw[0] * source_hw[0] + 3 + 1e-6


@pytest.mark.parametrize("ratio", ["any", 0.25, 0.5, 1, 1.5, 2, 3])
def test_box_of_a_resized_picture_is_that_of_the_whole(ratio):
    rng = np.random.default_rng(0)
    for _ in range(150):
        if ratio == "any":
            source_hw, hw = (tuple(rng.integers(1, 400, 2).tolist()) for _ in range(2))
        else:
            source_hw = tuple((4 * rng.integers(1, 60, 2)).tolist())
            hw = tuple(int(side * ratio) for side in source_hw)
        check_random_box(rng, source_hw, hw, rng.integers(1, 200, 2).tolist())


@pytest.mark.parametrize(
    ("source_hw", "scale_wh", "crop_hw"),
    [
        ((1024, 2048), (2048, 1024), (512, 1024)),
        ((512, 683), (2048, 512), (512, 512)),
        ((333, 500), (2048, 512), (512, 512)),
    ],
)
def test_box_of_a_real_size_is_that_of_the_whole(source_hw, scale_wh, crop_hw):
    rng = np.random.default_rng(0)
    for _ in range(12):
        hw = transforms.resized_hw(source_hw, transforms.random_scale(scale_wh, (0.5, 2), rng))
        check_random_box(rng, source_hw, hw, crop_hw)
