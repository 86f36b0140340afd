"""Bootstrap intervals are as wide as theory says, and pairs of runs share their draws."""

import math

import numpy as np
import pytest

from jaxseg.evaluation.per_image import PerImageCounts
from jaxseg.report.bootstrap import difference_intervals, same_images, score_intervals

PIXELS = 100


def counts(intersection, labeled=None, predicted=None):
    """Counts per image and class; by default, label and prediction have `PIXELS` pixels."""
    intersection = np.asarray(intersection, np.uint32)
    n, c = intersection.shape
    full = np.full((n, c), PIXELS, np.uint32)
    return PerImageCounts(
        images=tuple(f"{i}.png" for i in range(n)),
        image_hw=np.ones((n, 2), np.uint32),
        classes=tuple(f"class {k}" for k in range(c)),
        palette=np.zeros((c, 3), np.uint8),
        intersection=intersection,
        labeled=full if labeled is None else np.asarray(labeled, np.uint32),
        predicted=full if predicted is None else np.asarray(predicted, np.uint32),
        confusion=np.zeros((c + 1, c + 1), np.int64),
    )


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    # Half of 400 images are right in every pixel, the others predict nothing. The IoU of a draw is
    # the share of right images in it, and 400 times it is binomial.
    right = np.arange(400)[:, None] % 2 * PIXELS
    found = score_intervals(counts(right, predicted=right), resamples=4000)
    expected = 1.96 * math.sqrt(0.5 * 0.5 / 400)
    np.testing.assert_allclose(found.iou[:, 0], [0.5 - expected, 0.5 + expected], atol=0.006)
    np.testing.assert_array_equal(found.iou[:, 0], found.miou)


def test_the_interval_of_the_mean_is_narrower_than_those_of_independent_classes():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (200, 9)) * PIXELS
    found = score_intervals(counts(right, predicted=right))
    widths = found.iou[1] - found.iou[0]
    assert np.diff(found.miou) == pytest.approx(widths.mean() / math.sqrt(9), rel=0.2)


def test_images_that_are_hard_for_both_runs_cancel_out():
    # IoU varies between images, and the second run has five more pixels right in each of them.
    first = np.random.default_rng(0).integers(0, 90, (100, 1))
    labeled = np.full((100, 1), PIXELS)
    before, after = (
        counts(right, labeled=labeled, predicted=right) for right in (first, first + 5)
    )
    difference = difference_intervals(before, after)
    np.testing.assert_allclose(difference.miou, 0.05, atol=1e-12)
    assert np.diff(score_intervals(before).miou) > 0.05


def test_runs_that_are_equal_do_not_differ():
    one = counts(np.random.default_rng(0).integers(0, PIXELS, (20, 3)))
    found = difference_intervals(one, one)
    assert not found.iou.any()
    assert not found.miou.any()


def test_a_class_without_pixels_has_no_interval():
    right = np.full((5, 2), PIXELS) * [1, 0]
    found = score_intervals(counts(right, labeled=right, predicted=right))
    np.testing.assert_array_equal(found.iou, [[1, np.nan], [1, np.nan]])
    np.testing.assert_array_equal(found.miou, [1, 1])


def test_the_same_images_are_known_by_their_labels():
    right = np.full((5, 2), 3)
    one, other = counts(right), counts(right, labeled=np.full((5, 2), 4))
    assert same_images(one, counts(right * 2))
    assert not same_images(one, other)
    with pytest.raises(ValueError, match="not evaluated on the same images"):
        difference_intervals(one, other)


def test_intervals_are_the_same_every_time():
    one = counts(np.random.default_rng(0).integers(0, PIXELS, (20, 3)))
    np.testing.assert_array_equal(score_intervals(one).iou, score_intervals(one).iou)
