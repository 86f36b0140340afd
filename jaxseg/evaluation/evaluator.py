"""Scores a model on a dataset, with every image used once over all processes."""

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg.data.evaluation_images import evaluation_images
from jaxseg.data.source import Source, evaluated_on
from jaxseg.evaluation import metrics
from jaxseg.evaluation.gallery import Gallery
from jaxseg.inference.predictor import make_predictor
from jaxseg.models.segmentation_model import SegmentationModel, Variables


class Stopped(Exception):
    """Signals that an evaluation was asked to stop before its end."""


def evaluate(
    model: SegmentationModel,
    variables: Variables,
    config: ConfigDict,
    mesh: Mesh,
    *,
    source: Source | None = None,
    pictures: pathlib.Path | None = None,
    on_image: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> metrics.Scores:
    """Scores a model on a dataset, with every image at its own size.

    The views and windows are those of `config.eval`, run over all devices. Pixels are counted in
    int64 on the host. With several processes, all of them must call this together.

    Args:
      model: the model to evaluate.
      variables: its variables on the devices of `mesh`, with any sharding.
      config: the resolved config.
      mesh: the devices of all processes.
      source: the data to evaluate on. None is the validation split of `config.data`.
      pictures: directory for panels of the first `config.eval.pictures` images, for as many of the
        worst and of the best images, and for the scores and counts of all images
        (`jaxseg.evaluation.gallery`). None writes none.
      on_image: called with the index of each sample of this process, its label and its class map,
        both uint8 [h, w]. It is not called if `pictures` is given.
      stop: called before every image. If it returns true, the evaluation ends.

    Returns:
      The scores of the whole dataset, the same in every process.

    Raises:
      Stopped: if `stop()` returned true.
      DataError: if a sample is missing or bad.
      ConfigError: if `config.eval` describes impossible views or windows.
    """
    source = source or evaluated_on(config.data)
    dataset, samples = source.dataset, source.samples()
    outputs = len(dataset.classes) if config.eval.mask_absent_classes else None
    predictor = make_predictor(model, variables, config, mesh, outputs)
    total = np.zeros((len(dataset.classes) + 1,) * 2, np.int64)
    if pictures:
        gallery = Gallery(pictures, samples, dataset, config.eval.pictures)
        on_image = gallery.add
    read, also_read = itertools.tee(_images(samples, config, stop))
    predictions = predictor.class_maps(item["image"] for item in also_read)
    for item, prediction in zip(read, predictions, strict=True):
        total += metrics.confusion_matrix(prediction, item["label"], len(dataset.classes))
        if on_image and item["index"] >= 0:
            on_image(item["index"], item["label"], prediction)
    scores = metrics.compute_scores(_sum_over_processes(total))
    if pictures:
        gallery.close(scores.confusion)
    return scores


def _images(samples, config, stop) -> Iterator[dict[str, Any]]:
    own = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for item in evaluation_images(samples, config.data, **own):
        if stop():
            raise Stopped
        yield item


def _sum_over_processes(total):
    """Sums an int64 array over all processes.

    The gather moves each number as two int32 halves, because JAX has no longer integers here.
    """
    halves = multihost_utils.process_allgather(total.view(np.int32))
    gathered = np.ascontiguousarray(halves).view(np.int64)
    return gathered.reshape(-1, *total.shape).sum(axis=0)
