"""Counts pixels near the boundaries of classes, for the boundary IoU.

The boundary IoU is the IoU of the pixels of a class that lie close to its contour, in the label and
in the prediction. Unlike the IoU, it does not hide a coarse outline of a large object. Cheng,
Girshick, Dollár, Berg and Kirillov, "Boundary IoU" (arXiv:2103.16562). Here counts are summed over
all images before the division, as for the IoU.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Integer, UInt8

DILATION = 0.02  # the distance from the contour, as a share of the image's diagonal


def boundary_counts(
    prediction: UInt8[np.ndarray, "h w"],
    label: UInt8[np.ndarray, "h w"],
    num_classes: int,
    ignore_index: int = 255,
) -> Integer[np.ndarray, "3 classes"]:
    """Counts what the boundary IoU of a class is a ratio of.

    A pixel is near the contour if another class, or the outside of the image, is at most
    2 % of the image's diagonal away, in rows and in columns. Ignored pixels are not counted, and
    are no contour in the label.

    Args:
      prediction: the class of every pixel.
      label: the same by the label.
      num_classes: the number of classes.
      ignore_index: the label of pixels that are not counted.

    Returns:
      Pixels per class near the contour: in both, in the label, and in the prediction.
    """
    distance = max(1, round(DILATION * math.hypot(*label.shape)))
    labeled = label != ignore_index
    in_label = _near_contour(label, distance, labeled) & labeled
    in_prediction = _near_contour(prediction, distance, np.ones_like(labeled)) & labeled
    in_both = in_label & in_prediction & (label == prediction)
    return np.stack(
        [
            np.bincount(classes[near], minlength=256)[:num_classes]
            for classes, near in ((label, in_both), (label, in_label), (prediction, in_prediction))
        ]
    )


def _near_contour(classes, distance, counted) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels have another class, or the image's edge, within a distance."""
    window = np.ones((2 * distance + 1,) * 2, np.uint8)
    highest = cv2.dilate(np.where(counted, classes, 0).astype(np.uint8), window)
    lowest = cv2.erode(np.where(counted, classes, 255).astype(np.uint8), window)
    near = (highest != classes) | (lowest != classes)
    for edge in (near[:distance], near[-distance:], near[:, :distance], near[:, -distance:]):
        edge[:] = True
    return near
