"""How well a segmentation agrees with its labels: counts on the device, scores on the host.

The rules are those of mmsegmentation's `eval_metrics`, which produced the published numbers:
sums over all images first, ratios after. One matrix with a place for values outside the classes
holds everything they need: intersection, predicted area and labelled area of every class.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


def confusion_matrix(
    prediction: Int[Array, "..."],
    label: Int[Array, "..."],
    num_classes: int,
    ignore_index: int = 255,
) -> Int[Array, "rows columns"]:
    """Counts the pixels of every pair (label, prediction).

    The result is int32 [num_classes + 1, num_classes + 1]: rows are labels, columns predictions,
    the last of each stands for every value outside 0..num_classes-1. Pixels labelled
    `ignore_index` count nowhere. Both arrays have the same shape, any integer type, any number
    of images; `num_classes` is static under `jit`.

    One call is exact up to 2^31 pixels. Add its results up in `np.int64` on the host: the
    reference adds in float32, which drops pixels beyond 2^24, which Cityscapes val has.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction {prediction.shape} and label {label.shape} are not of the same shape"
        )
    prediction = prediction.astype(jnp.int32)
    label = label.astype(jnp.int32)
    row = jnp.where(label == ignore_index, num_classes + 1, _inside(label, num_classes))
    column = _inside(prediction, num_classes)
    return jax.lax.platform_dependent(
        row,
        column,
        tpu=lambda row, column: _count_by_matmul(row, column, num_classes + 1),
        default=lambda row, column: _count_by_bins(row, column, num_classes + 1),
    )


def _inside(values, num_classes):
    """Values in 0..num_classes-1 stay, all others become num_classes."""
    return jnp.where((values >= 0) & (values < num_classes), values, num_classes)


def _count_by_bins(row, column, size):
    """Adds one per pixel: 3 ms for 1024x2048 on two CPU cores, for 19 classes as for 150."""
    bins = jnp.bincount((row * size + column).ravel(), length=(size + 1) * size)
    return bins[: size * size].reshape(size, size)  # what follows are the ignored pixels


def _count_by_matmul(row, column, size):
    """The same as a product of one-hot matrices.

    A TPU adds one pixel after the other into bins, but has a unit for products; int8 operands
    with int32 sums stay exact. An ignored row is beyond the classes, hence all zeros.
    """
    row = jax.nn.one_hot(row.ravel(), size, dtype=jnp.int8)
    column = jax.nn.one_hot(column.ravel(), size, dtype=jnp.int8)
    return jnp.einsum("nr,nc->rc", row, column, preferred_element_type=jnp.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a dataset, all in 0..1; nan where the reference divides zero by zero.

    A class in neither labels nor predictions has no IoU. One that is predicted but never
    labelled has IoU 0, which counts in `miou`, and no accuracy. Arrays are float64 [C], and
    `pixels` is the labelled area, int64 [C]. `outside` is the share of it that is predicted as
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


def scores(confusion: Int[np.ndarray, "rows columns"]) -> Scores:
    """Scores from the summed `confusion_matrix` of a dataset, [C + 1, C + 1]."""
    confusion = np.asarray(confusion, np.int64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix is square, this one has shape {confusion.shape}")
    # A prediction outside the classes keeps its pixel in the labelled area; a label outside
    # them still enlarges the predicted area, and with it the union.
    intersection = np.diag(confusion)[:-1]
    labelled = confusion[:-1].sum(axis=1)
    predicted = confusion[:, :-1].sum(axis=0)
    precision = _ratio(intersection, predicted)
    recall = _ratio(intersection, labelled)
    return Scores(
        confusion=confusion,
        iou=_ratio(intersection, labelled + predicted - intersection),
        acc=recall,
        dice=_ratio(2 * intersection, labelled + predicted),
        # Unlike dice, undefined as soon as precision or recall is: the reference's mFscore.
        fscore=_ratio(2 * precision * recall, precision + recall),
        pixels=labelled,
        aacc=float(_ratio(intersection.sum(), labelled.sum())),
        outside=float(_ratio(confusion[:-1, -1].sum(), labelled.sum())),
    )


def _ratio(numerator, denominator):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


def _mean(values):
    """Mean over the defined values; nan, without numpy's warning, where there is none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else float("nan")
