"""The boundary IoU against its definition, class by class."""

import cv2
import numpy as np
import pytest

from jaxseg.evaluation.boundaries import boundary_counts
from jaxseg.evaluation.metrics import class_iou

HW, CLASSES = (120, 160), 4  # the diagonal is 200, so the distance is 4


def blobs(seed):
    noise = np.random.default_rng(seed).normal(size=(*HW, CLASSES)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 9).argmax(axis=-1).astype(np.uint8)


def near_contour(mask):
    """What the paper's erosion removes: four times by a window of 3 x 3, with zeros outside."""
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=4)[1:-1, 1:-1]
    return mask & (eroded == 0)


def test_counts_are_those_of_the_definition():
    label, prediction = blobs(0), blobs(1)
    prediction[:60] = label[:60]
    found = class_iou(*boundary_counts(prediction, label, CLASSES))
    for k in range(CLASSES):
        one, other = near_contour(label == k), near_contour(prediction == k)
        assert found[k] == pytest.approx((one & other).sum() / (one | other).sum())


def test_equal_maps_have_the_value_one_and_shifted_ones_less_than_their_iou():
    label = blobs(0)
    assert (class_iou(*boundary_counts(label, label, CLASSES)) == 1).all()
    shifted = np.roll(label, 3, axis=1)
    near = class_iou(*boundary_counts(shifted, label, CLASSES))
    whole = [
        ((label == k) & (shifted == k)).sum() / ((label == k) | (shifted == k)).sum()
        for k in range(CLASSES)
    ]
    assert (near < whole).all()


def test_ignored_pixels_are_neither_counted_nor_a_contour():
    label = np.zeros(HW, np.uint8)
    label[:, 80:] = 255
    in_both, in_label, in_prediction = boundary_counts(np.zeros(HW, np.uint8), label, CLASSES)
    # The image's edge alone: 4 pixels on the left, above and below of 80 columns.
    assert in_label.tolist() == [80 * 120 - 76 * 112, 0, 0, 0]
    assert in_both.tolist() == in_label.tolist() == in_prediction.tolist()
