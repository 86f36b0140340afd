"""Writes panels of some images of an evaluation, and the scores and counts of all images.

The folder contains NAME.png for the first images, `worst/RANK_NAME.png` for those with the lowest
IoU and `best/RANK_NAME.png` for those with the highest. `images.csv` lists all images that have a
score, the worst first. `per_image.npz` holds the counts that the scores follow from
(`jaxseg.evaluation.per_image`).
"""

import csv
import io
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Integer, UInt8

from jaxseg.atomic_files import write_png, write_text
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.decoding.pictures import read_image
from jaxseg.data.samples import Sample
from jaxseg.evaluation import metrics
from jaxseg.evaluation.per_image import PerImageCounts, write_per_image
from jaxseg.reporting import visualize

UNDEFINED = -1.0  # a score of an image without labeled pixels, or of another process's image
GATHERED = 512  # images whose counts are gathered at a time, which bounds the memory it takes


class Gallery:
    """Scores and draws the images of an evaluation, each process its own images.

    The IoU of an image is the mean over the classes in its label or prediction. Images without any
    labeled pixel have no score.
    """

    def __init__(
        self, directory: pathlib.Path, samples: Sequence[Sample], dataset: Dataset, count: int
    ):
        """Prepares an empty gallery.

        Args:
          directory: where to write panels and the table.
          samples: all samples of the evaluation, over all processes.
          dataset: the names and colors of the classes.
          count: how many of the first images to draw, how many of the worst, and how many of the
            best among the others.
        """
        self._directory, self._samples, self._dataset = directory, samples, dataset
        self._count = count
        self._scores = np.full((len(samples), 2), UNDEFINED, np.float32)  # IoU, accuracy
        # Height and width of each image, then the intersection, label and prediction of each class.
        self._counts = np.zeros((len(samples), 2 + 3 * len(dataset.classes)), np.uint32)
        self._worst = []  # (IoU, index, label, prediction), the worst first
        self._best = []  # the best first

    def add(
        self, index: int, label: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]
    ):
        """Scores and counts one image, and draws it if it is among the first.

        Args:
          index: the place of the image in the samples.
          label: its label.
          prediction: its class map.
        """
        if index < self._count:
            self._draw(
                self._directory / f"{self._samples[index].name}.png", index, label, prediction
            )
        confusion = metrics.confusion_matrix(prediction, label, len(self._dataset.classes))
        self._counts[index] = *label.shape, *metrics.class_counts(confusion).ravel()
        scores = metrics.compute_scores(confusion)
        if not scores.pixels.any():
            return
        self._scores[index] = scores.miou, scores.aacc
        image = (float(self._scores[index, 0]), index, label, prediction)
        self._worst = sorted([*self._worst, image], key=_rank)[: self._count]
        self._best = sorted([*self._best, image], key=_rank, reverse=True)[: self._count]

    def close(self, confusion: Integer[np.ndarray, "rows columns"]):
        """Writes the panels of the worst and the best images, the table and the counts.

        All processes must call it.

        Args:
          confusion: the confusion matrix of all images of all processes, [C + 1, C + 1].
        """
        scores = multihost_utils.process_allgather(self._scores)
        scores = scores.reshape(-1, len(self._samples), 2).max(axis=0)
        scored = np.flatnonzero(scores[:, 0] != UNDEFINED)
        order = scored[np.argsort(scores[scored, 0], kind="stable")].tolist()
        kept = {index: maps for _, index, *maps in (*self._worst, *self._best)}
        for index, (label, prediction) in kept.items():
            place = order.index(index)  # over all processes
            if place < self._count:
                folder, rank = "worst", place + 1
            elif place >= len(order) - self._count:
                folder, rank = "best", len(order) - place
            else:
                continue
            name = f"{rank:02d}_{self._samples[index].name}.png"
            self._draw(self._directory / folder / name, index, label, prediction)
        counts = _sum_over_processes(self._counts)
        if jax.process_index() == 0:
            table = io.StringIO()
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(("image", "iou", "acc"))
            for index in order:
                iou, acc = scores[index]
                writer.writerow((self._samples[index].image, f"{iou:.6f}", f"{acc:.6f}"))
            write_text(self._directory / "images.csv", table.getvalue())
            intersection, labeled, predicted = np.split(counts[:, 2:], 3, axis=1)
            per_image = PerImageCounts(
                images=tuple(str(sample.image) for sample in self._samples),
                image_hw=counts[:, :2],
                classes=self._dataset.classes,
                palette=self._dataset.palette,
                intersection=intersection,
                labeled=labeled,
                predicted=predicted,
                confusion=confusion,
            )
            write_per_image(self._directory / "per_image.npz", per_image)

    def _draw(self, path, index, label, prediction):
        image = np.ascontiguousarray(read_image(self._samples[index].image)[..., ::-1])
        palette, classes = self._dataset.palette, self._dataset.classes
        panel = visualize.evaluation_panel(image, label, prediction, palette, classes)
        write_png(path, panel)


def _rank(image):
    """Orders images by their IoU, and those of the same IoU by their index."""
    return image[:2]


def _sum_over_processes(counts):
    """Sums rows, each of which is zero in all processes but one."""
    parts = [
        multihost_utils.process_allgather(counts[start : start + GATHERED])
        for start in range(0, len(counts), GATHERED)
    ]
    return np.concatenate(
        [part.reshape(-1, *part.shape[-2:]).sum(axis=0, dtype=counts.dtype) for part in parts]
    )
