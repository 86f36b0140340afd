"""How well a segmentation agrees with its labels: counts, and scores made of them.

The rules are those of mmsegmentation's `eval_metrics`, which produced the published numbers:
sums over all images first, ratios after. One matrix with a place for values outside the classes
holds everything they need: intersection, predicted area and labeled area of every class.
"""

import dataclasses

import numpy as np
from jaxtyping import Int


def confusion_matrix(
    prediction: Int[np.ndarray, "..."],
    label: Int[np.ndarray, "..."],
    num_classes: int,
    ignore_index: int = 255,
) -> Int[np.ndarray, "rows columns"]:
    """Counts the pixels of every pair (label, prediction).

    The result is int64 [num_classes + 1, num_classes + 1]: rows are labels, columns predictions,
    the last of each stands for every value outside 0..num_classes-1. Pixels labeled
    `ignore_index` count nowhere. Both arrays have the same shape, any integer type, any number
    of images. (The reference adds in float32, which drops pixels beyond 2^24, which Cityscapes val
    has.)
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction {prediction.shape} and label {label.shape} are not of the same shape"
        )
    size, labeled = num_classes + 1, label != ignore_index
    row, column = (_inside(values[labeled], num_classes) for values in (label, prediction))
    return np.bincount(row * size + column, minlength=size * size).reshape(size, size)


def _inside(values, num_classes):
    """Values in 0..num_classes-1 stay, all others become num_classes."""
    values = values.astype(np.int64)
    return np.where((values >= 0) & (values < num_classes), values, num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a dataset, all in 0..1; nan where the reference divides zero by zero.

    A class in neither labels nor predictions has no IoU. One that is predicted but never
    labeled has IoU 0, which counts in `miou`, and no accuracy. Arrays are float64 [C], and
    `pixels` is the labeled area, int64 [C]. `outside` is the share of it that is predicted as
    none of the classes, by heads that have more outputs. `confusion` is what all of it is computed
    from, int64 [C + 1, C + 1].
    """

    confusion: np.ndarray
    iou: np.ndarray
    acc: np.ndarray
    dice: np.ndarray
    fscore: np.ndarray
    pixels: np.ndarray
    aacc: float
    outside: float

    @property
    def miou(self) -> float:
        return _mean(self.iou)

    @property
    def macc(self) -> float:
        return _mean(self.acc)

    @property
    def mdice(self) -> float:
        return _mean(self.dice)

    @property
    def mfscore(self) -> float:
        return _mean(self.fscore)

    @property
    def iou_classes(self) -> int:
        """Over how many classes `miou` is averaged."""
        return int(np.isfinite(self.iou).sum())

    @property
    def acc_classes(self) -> int:
        """Over how many classes `macc` is averaged."""
        return int(np.isfinite(self.acc).sum())

    def reported(self) -> dict[str, float]:
        """The means as the reference reports them, rounded to 0.01 per cent."""
        raw = {"mIoU": self.miou, "mAcc": self.macc, "aAcc": self.aacc}
        raw |= {"mDice": self.mdice, "mFscore": self.mfscore}
        return {name: round(100 * value, 2) / 100 for name, value in raw.items()}


def compute_scores(confusion: Int[np.ndarray, "rows columns"]) -> Scores:
    """Scores from the summed `confusion_matrix` of a dataset, [C + 1, C + 1]."""
    confusion = np.asarray(confusion, np.int64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix is square, this one has shape {confusion.shape}")
    # A prediction outside the classes keeps its pixel in the labeled area; a label outside
    # them still enlarges the predicted area, and with it the union.
    intersection = np.diag(confusion)[:-1]
    labeled = confusion[:-1].sum(axis=1)
    predicted = confusion[:, :-1].sum(axis=0)
    precision = _ratio(intersection, predicted)
    recall = _ratio(intersection, labeled)
    return Scores(
        confusion=confusion,
        iou=_ratio(intersection, labeled + predicted - intersection),
        acc=recall,
        dice=_ratio(2 * intersection, labeled + predicted),
        # Unlike dice, undefined as soon as precision or recall is: the reference's mFscore.
        fscore=_ratio(2 * precision * recall, precision + recall),
        pixels=labeled,
        aacc=float(_ratio(intersection.sum(), labeled.sum())),
        outside=float(_ratio(confusion[:-1, -1].sum(), labeled.sum())),
    )


def _ratio(numerator, denominator):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


def _mean(values):
    """Mean over the defined values; nan, without numpy's warning, where there is none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else float("nan")
