"""Scores a model on a dataset, with every image used once over all processes."""

import dataclasses
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
from jaxseg.errors import ConfigError
from jaxseg.evaluation import boundaries, calibration, metrics
from jaxseg.evaluation.gallery import Gallery
from jaxseg.inference.predictor import make_predictor
from jaxseg.models.segmentation_model import SegmentationModel, Variables
from jaxseg.recipes.listed import listed_names

MEASURES = BOUNDARY_IOU, CALIBRATION = "boundary_iou", "calibration"


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
      ConfigError: if `config.eval` describes impossible views or windows, or unknown measures.
    """
    source = source or evaluated_on(config.data)
    dataset, samples = source.dataset, source.samples()
    outputs = len(dataset.classes) if config.eval.mask_absent_classes else None
    predictor = make_predictor(model, variables, config, mesh, outputs)
    measures, classes = measure_names(config), len(dataset.classes)
    total = np.zeros((classes + 1,) * 2, np.int64)
    near_boundaries = np.zeros((3, classes), np.int64)
    calibrated = np.zeros((3, calibration.BINS))
    if pictures:
        gallery = Gallery(pictures, samples, dataset, config.eval.pictures)
        on_image = gallery.add
    read, also_read = itertools.tee(_images(samples, config, stop))
    images = (item["image"] for item in also_read)
    if CALIBRATION in measures:  # all probabilities leave the devices, not only the classes
        predictions = predictor.probability_maps(images)
    else:
        predictions = predictor.class_maps(images)
    for item, prediction in zip(read, predictions, strict=True):
        label = item["label"]
        if CALIBRATION in measures:
            calibrated += calibration.calibration_counts(prediction, label)
            prediction = prediction.argmax(axis=-1).astype(np.uint8)
        if BOUNDARY_IOU in measures:
            near_boundaries += boundaries.boundary_counts(prediction, label, classes)
        total += metrics.confusion_matrix(prediction, label, classes)
        if on_image and item["index"] >= 0:
            on_image(item["index"], label, prediction)
    scores = metrics.compute_scores(_sum_over_processes(total))
    if BOUNDARY_IOU in measures:
        of_classes = metrics.class_iou(*_sum_over_processes(near_boundaries))
        scores = dataclasses.replace(scores, boundary_iou=of_classes)
    if CALIBRATION in measures:
        scores = dataclasses.replace(scores, calibration=_sum_over_processes(calibrated))
    if pictures:
        gallery.close(scores.confusion)
    return scores


def measure_names(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names in `config.eval.measures`.

    Raises:
      ConfigError: for a name that is not in `MEASURES`, or for the calibration of Mask2Former,
        whose scores are no probabilities.
    """
    names = listed_names(config.eval.measures)
    if unknown := [name for name in names if name not in MEASURES]:
        raise ConfigError(
            f"config.eval.measures={','.join(unknown)}: there are {', '.join(MEASURES)}"
        )
    if CALIBRATION in names and config.model.decode_head.kind == "mask2former":
        raise ConfigError(
            f"config.eval.measures={CALIBRATION}: the scores of Mask2Former are sums over queries,"
            " not probabilities, so that they have no calibration; leave it out"
        )
    return names


def _images(samples, config, stop) -> Iterator[dict[str, Any]]:
    own = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for item in evaluation_images(samples, config.data, **own):
        if stop():
            raise Stopped
        yield item


def _sum_over_processes(total):
    """Sums an array of int64 or float64 over all processes.

    The gather moves each number as two int32 halves, because JAX has no longer numbers here.
    """
    halves = multihost_utils.process_allgather(total.view(np.int32))
    gathered = np.ascontiguousarray(halves).view(total.dtype)
    return gathered.reshape(-1, *total.shape).sum(axis=0)
