"""Measures whether the probability of the predicted class is the share of correct pixels.

The expected calibration error (ECE) sorts pixels into bins by the probability of their predicted
class. It is the mean over all pixels of the distance between a bin's accuracy and its mean
probability. Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017
(arXiv:1706.04599), with 15 bins of equal width as there.
"""

import numpy as np
from jaxtyping import Float, Integer

BINS = 15


def calibration_counts(
    probabilities: Float[np.ndarray, "h w k"],
    label: Integer[np.ndarray, "h w"],
    ignore_index: int = 255,
) -> Float[np.ndarray, "3 bins"]:
    """Counts what the calibration of an image follows from.

    Args:
      probabilities: of every class.
      label: the class by the label.
      ignore_index: the label of pixels that are not counted.

    Returns:
      For each bin: the number of its pixels, the sum of their highest probabilities, and the number
      of those whose most probable class is that of the label.
    """
    labeled = label != ignore_index
    highest = probabilities.max(axis=-1)[labeled].astype(np.float64)
    correct = probabilities.argmax(axis=-1)[labeled] == label[labeled]
    # A bin has its upper bound, but not its lower one.
    bins = np.clip(np.ceil(highest * BINS).astype(int) - 1, 0, BINS - 1)
    weights = np.ones_like(highest), highest, correct
    return np.stack([np.bincount(bins, weight, BINS) for weight in weights])


def expected_calibration_error(counts: Float[np.ndarray, "3 bins"]) -> float:
    """Returns the ECE, from 0 to 1; NaN without pixels.

    Args:
      counts: the sum of `calibration_counts` over all images.
    """
    pixels, probability, correct = counts
    total = pixels.sum()
    return float(np.abs(correct - probability).sum() / total) if total else float("nan")
