"""Estimates how far scores depend on the choice of images: a bootstrap over images.

The N images of an evaluation are drawn N times with replacement, over and over. Each draw gives a
score of the dataset; the middle 95 % of these scores are the interval (the percentile method; Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). Two runs on the same images
are compared on the same draws, so that images that are hard for both cancel out.

The intervals say nothing of another seed of the training.
"""

import dataclasses
import functools
import warnings

import numpy as np
from jaxtyping import Float

from jaxseg.evaluation.metrics import class_iou
from jaxseg.evaluation.per_image import PerImageCounts

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Intervals:
    """The lower and the upper bound of each score; NaN for a class that is undefined in all draws.

    Attributes:
      iou: bounds of the IoU of each class, or of its difference.
      miou: bounds of the mIoU, or of its difference.
    """

    iou: Float[np.ndarray, "2 c"]
    miou: Float[np.ndarray, "2"]


def score_intervals(counts: PerImageCounts, resamples: int = RESAMPLES) -> Intervals:
    """Returns the intervals of the scores of a run."""
    return _intervals(*_resampled_scores(counts, resamples))


def difference_intervals(
    first: PerImageCounts, second: PerImageCounts, resamples: int = RESAMPLES
) -> Intervals:
    """Returns the intervals of the scores of the second run minus those of the first.

    Raises:
      ValueError: if the runs were not evaluated on the same images.
    """
    if not same_images(first, second):
        raise ValueError("the runs were not evaluated on the same images")
    pairs = zip(
        _resampled_scores(second, resamples), _resampled_scores(first, resamples), strict=True
    )
    return _intervals(*(after - before for after, before in pairs))


def same_images(first: PerImageCounts, second: PerImageCounts) -> bool:
    """Returns whether two evaluations were on the same labels, in the same order.

    The pixels of each class in each image decide, because the paths of a dataset differ between
    machines.
    """
    return first.classes == second.classes and np.array_equal(first.labeled, second.labeled)


def _resampled_scores(counts, resamples):
    """Returns the IoU of each class [resamples, C] and the mIoU [resamples] of each draw."""
    drawn = _draws(len(counts.images), resamples)
    areas = (counts.intersection, counts.labeled, counts.predicted)
    iou = class_iou(*(drawn @ area.astype(np.float64) for area in areas))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        return iou, np.nanmean(iou, axis=1)


@functools.lru_cache(2)
def _draws(n, resamples):
    """Returns how often each draw takes each image, float64 [resamples, n]; always the same."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)


def _intervals(iou, miou):
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered")
        return Intervals(np.nanpercentile(iou, tails, axis=0), np.nanpercentile(miou, tails))
