"""Scores of a model on a dataset: every image once, over all processes."""

import itertools
import pathlib
from collections.abc import Callable, Iterator

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
    """The evaluation was asked to stop before its end."""


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
    """Scores of a model on the validation split, every image at its own size.

    Views and windows are those of `config.eval`, over all devices. Counts are added up in int64 on
    the host.

    Args:
      variables: on the devices of `mesh`, however they are sharded.
      source: evaluated on; the validation split where None.
      pictures: where to write panels of the first `config.eval.pictures` images and of as many of
        the worst, with a table of all (`jaxseg.evaluation.gallery`), if anywhere.
      on_image: called, where there are no pictures, with the index of each sample of this process,
        its label and its class map, both uint8 [h, w].
      stop: asked before every image.

    Raises:
      Stopped: when `stop()` is true.
      DataError: where a sample is missing or bad.
      ConfigError: where `config.eval` describes views or windows that cannot be.
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
    if pictures:
        gallery.close()
    return metrics.compute_scores(_sum_over_processes(total))


def _images(samples, config, stop) -> Iterator[dict[str, np.ndarray]]:
    own = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for item in evaluation_images(samples, config.data, **own):
        if stop():
            raise Stopped
        yield item


def _sum_over_processes(total):
    """Of int64, in halves of 32 bits: JAX has no longer integers here."""
    halves = multihost_utils.process_allgather(total.view(np.int32))
    gathered = np.ascontiguousarray(halves).view(np.int64)
    return gathered.reshape(-1, *total.shape).sum(axis=0)
