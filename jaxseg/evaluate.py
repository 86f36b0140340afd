"""Evaluation of a model on a dataset, over all devices."""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import cv2
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import (
    checkpoints,
    config_files,
    image_sizes,
    inference,
    metrics,
    parallel,
    report,
    visualize,
)
from jaxseg.data import datasets
from jaxseg.data.description import IGNORE
from jaxseg.data.evaluation import evaluation_images
from jaxseg.models import segmentor

PIXELS = 1 << 20  # that are counted at once


class Stopped(Exception):
    """The evaluation was asked to stop before its end."""


def evaluate(
    model: segmentor.Segmentor,
    variables: segmentor.Variables,
    config: ConfigDict,
    mesh: Mesh,
    *,
    pictures: pathlib.Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> metrics.Scores:
    """Scores of a model on the validation split, every image at its own size.

    Views and windows are those of `config.eval`, over all devices. Counts are added up in int64 on
    the host.

    Args:
      variables: on the devices of `mesh`, however they are sharded.
      pictures: where to write panels of the first `config.eval.pictures` images, if anywhere.
      stop: asked before every image.

    Raises:
      Stopped: when `stop()` is true.
      DataError: where a sample is missing or bad.
      ConfigError: where `config.eval` describes views or windows that cannot be.
    """
    source = datasets.evaluated_on(config.data)
    dataset, samples = source.dataset, source.samples()
    outputs = len(dataset.classes) if config.eval.mask_absent_classes else None
    predictor = inference.predictor_of(model, variables, config, mesh, outputs)
    total = np.zeros((len(dataset.classes) + 1,) * 2, np.int64)
    read, also_read = itertools.tee(_images(samples, config, stop))
    predictions = predictor.class_maps(item["image"] for item in also_read)
    for item, prediction in zip(read, predictions, strict=True):
        total += _confusion(prediction, item["label"], len(dataset.classes))
        if pictures and 0 <= item["index"] < config.eval.pictures:
            _write_panel(pictures, samples[item["index"]], item, prediction, dataset)
    return metrics.scores(_sum_over_processes(total))


def _images(samples, config, stop) -> Iterator[dict[str, np.ndarray]]:
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for item in evaluation_images(samples, config.data, **processes):
        if stop():
            raise Stopped
        yield item


def _confusion(prediction, label, num_classes) -> np.ndarray:
    """Of one image, counted in pieces of one size, so that it is compiled once."""
    filling = -label.size % PIXELS
    prediction = np.pad(prediction.ravel(), (0, filling)).reshape(-1, PIXELS)
    label = np.pad(label.ravel(), (0, filling), constant_values=IGNORE).reshape(-1, PIXELS)
    counts = [_count(*pair, num_classes) for pair in zip(prediction, label, strict=True)]
    return np.sum([np.asarray(count, np.int64) for count in counts], axis=0)


_count = jax.jit(metrics.confusion_matrix, static_argnums=2)


def _sum_over_processes(total):
    """Of int64, in halves of 32 bits: JAX has no longer integers here."""
    halves = multihost_utils.process_allgather(total.view(np.int32))
    gathered = np.ascontiguousarray(halves).view(np.int64)
    return gathered.reshape(-1, *total.shape).sum(axis=0)


def _write_panel(directory, sample, item, prediction, dataset):
    directory.mkdir(parents=True, exist_ok=True)
    image = np.ascontiguousarray(item["image"][..., ::-1])
    panel = visualize.evaluation_panel(
        image, item["label"], prediction, dataset.palette, dataset.classes
    )
    cv2.imwrite(str(directory / f"{sample.name}.png"), panel[..., ::-1])


def evaluate_checkpoint(
    path: str, config: ConfigDict | None, workdir: pathlib.Path, overrides: Sequence[str] = ()
):
    """Evaluates a saved run and writes the scores and pictures to `workdir`.

    Args:
      path: a run's directory (its best checkpoint) or one checkpoint.
      config: evaluate this model with this data; None takes what the checkpoint was made with.
      overrides: of the checkpoint's config, as `--config.KEY=VALUE`.

    Raises:
      CheckpointError: where there is no checkpoint, or where it is of another model.
      ConfigError: for sizes that the model cannot take.
    """
    checkpoint = checkpoints.find(path)
    if config is None:
        config = ConfigDict(checkpoints.load_config(checkpoint))
        config_files.override(config, overrides)
    image_sizes.check(config)
    mesh = parallel.make_mesh(config.mesh)
    model = segmentor.build(config.model)
    variables = checkpoints.load_variables(checkpoint, abstract_variables(model, config, mesh))
    pictures = workdir / "predictions" / f"step_{int(checkpoint.name):06d}"
    scores = evaluate(model, variables, config, mesh, pictures=pictures)
    classes = datasets.evaluated_on(config.data).dataset.classes
    if jax.process_index() == 0:
        report.print_evaluation(scores, classes)
        report.write_evaluation(workdir, scores, classes)
        print(f"val mIoU = {scores.miou:.3f}\npictures in {pictures}")


def abstract_variables(model: segmentor.Segmentor, config: ConfigDict, mesh: Mesh):
    """Shapes, types and shardings of a model's variables."""
    shapes = segmentor.shapes(model)
    shardings = parallel.infer(shapes, config.sharding, mesh)
    return jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, shardings)
