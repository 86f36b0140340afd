"""Writes panels of the first and the worst images of an evaluation, and the scores of all images.

The folder contains NAME.png for the first images and `worst/RANK_NAME.png` for those with the
lowest IoU. `images.csv` lists all images that have a score, the worst first.
"""

import csv
import io
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from jaxseg.atomic_files import write_png, write_text
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.decoding.pictures import read_image
from jaxseg.data.samples import Sample
from jaxseg.evaluation import metrics
from jaxseg.reporting import visualize

UNDEFINED = -1.0  # a score of an image without labeled pixels, or of another process's image


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
          count: how many of the first images to draw, and how many of the worst.
        """
        self._directory, self._samples, self._dataset = directory, samples, dataset
        self._count = count
        self._scores = np.full((len(samples), 2), UNDEFINED, np.float32)  # IoU, accuracy
        self._worst = []  # (IoU, index, label, prediction), ascending

    def add(
        self, index: int, label: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]
    ):
        """Scores one image and draws it if it is among the first.

        Args:
          index: the place of the image in the samples.
          label: its label.
          prediction: its class map.
        """
        if index < self._count:
            self._draw(
                self._directory / f"{self._samples[index].name}.png", index, label, prediction
            )
        scores = metrics.compute_scores(
            metrics.confusion_matrix(prediction, label, len(self._dataset.classes))
        )
        if not scores.pixels.any():
            return
        self._scores[index] = scores.miou, scores.aacc
        self._worst.append((scores.miou, index, label, prediction))
        self._worst = sorted(self._worst, key=lambda image: image[:2])[: self._count]

    def close(self):
        """Writes the panels of the worst images and the table. All processes must call it."""
        scores = multihost_utils.process_allgather(self._scores)
        scores = scores.reshape(-1, len(self._samples), 2).max(axis=0)
        scored = np.flatnonzero(scores[:, 0] != UNDEFINED)
        order = scored[np.argsort(scores[scored, 0], kind="stable")].tolist()
        for _, index, label, prediction in self._worst:
            if (rank := order.index(index)) < self._count:
                name = f"{rank + 1:02d}_{self._samples[index].name}.png"
                self._draw(self._directory / "worst" / name, index, label, prediction)
        if jax.process_index() == 0:
            table = io.StringIO()
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(("image", "iou", "acc"))
            for index in order:
                iou, acc = scores[index]
                writer.writerow((self._samples[index].image, f"{iou:.6f}", f"{acc:.6f}"))
            write_text(self._directory / "images.csv", table.getvalue())

    def _draw(self, path, index, label, prediction):
        image = np.ascontiguousarray(read_image(self._samples[index].image)[..., ::-1])
        palette, classes = self._dataset.palette, self._dataset.classes
        panel = visualize.evaluation_panel(image, label, prediction, palette, classes)
        write_png(path, panel)
