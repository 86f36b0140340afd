"""Computes the confusion matrix of a segmentation and the scores that follow from it.

The rules are those of mmsegmentation's `eval_metrics`, which produced the published numbers. Counts
are summed over all images first, and ratios are taken of the sums. One matrix contains everything
the scores need: intersection, predicted area and labeled area of every class. Its last row and
column count values outside the classes.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Integer, Real

from jaxseg.evaluation.calibration import expected_calibration_error


def confusion_matrix(
    prediction: Integer[np.ndarray, "..."],
    label: Integer[np.ndarray, "..."],
    num_classes: int,
    ignore_index: int = 255,
) -> Integer[np.ndarray, "rows columns"]:
    """Counts the pixels of every pair (label, prediction).

    The reference adds in float32. This drops pixels beyond 2^24, a number that Cityscapes val
    exceeds.

    >>> confusion_matrix(np.array([0, 1, 1, 7]), np.array([0, 0, 1, 1]), num_classes=2).tolist()
    [[1, 1, 0], [0, 1, 1], [0, 0, 0]]

    Args:
      prediction: class indices, of any integer type and any number of images.
      label: class indices, of the same shape.
      num_classes: number of classes.
      ignore_index: the label of pixels that are not counted.

    Returns:
      int64 [num_classes + 1, num_classes + 1]. Rows are labels and columns are predictions. The
      last row and column count every value outside 0..num_classes-1.

    Raises:
      ValueError: if the shapes differ.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction {prediction.shape} and label {label.shape} have different shapes"
        )
    size, labeled = num_classes + 1, label != ignore_index
    row, column = (_inside(values[labeled], num_classes) for values in (label, prediction))
    return np.bincount(row * size + column, minlength=size * size).reshape(size, size)


def _inside(values, num_classes):
    """Replaces all values outside 0..num_classes-1 by num_classes."""
    values = values.astype(np.int64)
    return np.where((values >= 0) & (values < num_classes), values, num_classes)


def class_counts(
    confusion: Integer[np.ndarray, "rows columns"],
) -> Integer[np.ndarray, "3 classes"]:
    """Returns what the scores of a class are ratios of, as `eval_metrics` counts it.

    A pixel predicted outside the classes still counts in the labeled area. A pixel labeled outside
    them still counts in the predicted area, and therefore in the union.

    Args:
      confusion: a matrix of `confusion_matrix`, or a sum of them, [C + 1, C + 1].

    Returns:
      Pixels per class: the intersection of label and prediction, the labeled area and the predicted
      area.
    """
    areas = np.diag(confusion)[:-1], confusion[:-1].sum(axis=1), confusion[:, :-1].sum(axis=0)
    return np.stack(areas)


def class_iou(
    intersection: Real[np.ndarray, "*sums classes"],
    labeled: Real[np.ndarray, "*sums classes"],
    predicted: Real[np.ndarray, "*sums classes"],
) -> Float[np.ndarray, "*sums classes"]:
    """Returns the IoU of each class, NaN for a class in neither labels nor predictions."""
    return _ratio(intersection, labeled + predicted - intersection)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Holds the scores of a dataset, all in 0..1.

    A score is NaN where the reference divides zero by zero. A class in neither labels nor
    predictions has no IoU. A class that is predicted but never labeled has no accuracy. Its IoU is
    0 and counts in `miou`.

    Attributes:
      confusion: the matrix that everything is computed from, int64 [C + 1, C + 1].
      iou: intersection over union per class, float64 [C].
      acc: accuracy (recall) per class, float64 [C].
      dice: Dice coefficient per class, float64 [C].
      fscore: F1 score per class, float64 [C].
      pixels: labeled area per class in pixels, int64 [C].
      aacc: share of the labeled area that is predicted correctly.
      outside: share of the labeled area that is predicted as none of the classes. Only heads with
        more outputs than there are classes do this.
      boundary_iou: boundary IoU per class, float64 [C] (`jaxseg.evaluation.boundaries`); None if it
        was not asked for.
      calibration: the sum of `calibration.calibration_counts`, float64 [3, bins]; None if it was
        not asked for.
    """

    confusion: np.ndarray
    iou: np.ndarray
    acc: np.ndarray
    dice: np.ndarray
    fscore: np.ndarray
    pixels: np.ndarray
    aacc: float
    outside: float
    boundary_iou: np.ndarray | None = None
    calibration: np.ndarray | None = None

    @property
    def miou(self) -> float:
        """Returns the mean IoU over the classes that have one."""
        return _mean(self.iou)

    @property
    def macc(self) -> float:
        """Returns the mean accuracy over the classes that have one."""
        return _mean(self.acc)

    @property
    def mdice(self) -> float:
        """Returns the mean Dice coefficient over the classes that have one."""
        return _mean(self.dice)

    @property
    def mfscore(self) -> float:
        """Returns the mean F1 score over the classes that have one."""
        return _mean(self.fscore)

    @property
    def iou_classes(self) -> int:
        """Returns the number of classes that `miou` is averaged over."""
        return int(np.isfinite(self.iou).sum())

    @property
    def acc_classes(self) -> int:
        """Returns the number of classes that `macc` is averaged over."""
        return int(np.isfinite(self.acc).sum())

    def reported(self) -> dict[str, float]:
        """Returns the means as the reference reports them, rounded to 0.01 percent.

        The measures of `config.eval.measures` are added.
        """
        raw = {"mIoU": self.miou, "mAcc": self.macc, "aAcc": self.aacc}
        raw |= {"mDice": self.mdice, "mFscore": self.mfscore}
        if self.boundary_iou is not None:
            raw["boundary_mIoU"] = _mean(self.boundary_iou)
        if self.calibration is not None:
            raw["ECE"] = expected_calibration_error(self.calibration)
        return {name: round(100 * value, 2) / 100 for name, value in raw.items()}


def compute_scores(confusion: Integer[np.ndarray, "rows columns"]) -> Scores:
    """Computes the scores of a dataset from its confusion matrix.

    Args:
      confusion: the sum of `confusion_matrix` over all images, [C + 1, C + 1].

    Raises:
      ValueError: if the matrix is not square.
    """
    confusion = np.asarray(confusion, np.int64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix must be square; this one has shape {confusion.shape}")
    intersection, labeled, predicted = class_counts(confusion)
    precision = _ratio(intersection, predicted)
    recall = _ratio(intersection, labeled)
    return Scores(
        confusion=confusion,
        iou=class_iou(intersection, labeled, predicted),
        acc=recall,
        dice=_ratio(2 * intersection, labeled + predicted),
        # Unlike dice, this is undefined if precision or recall is, as in the reference's mFscore.
        fscore=_ratio(2 * precision * recall, precision + recall),
        pixels=labeled,
        aacc=float(_ratio(intersection.sum(), labeled.sum())),
        outside=float(_ratio(confusion[:-1, -1].sum(), labeled.sum())),
    )


def _ratio(numerator, denominator):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


def _mean(values):
    """Returns the mean of the finite values, or NaN without numpy's warning if there are none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else float("nan")
