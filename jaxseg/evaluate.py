"""Evaluation of a model on a dataset, over all devices."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg.checkpoints.manager import (
    find_checkpoint,
    flatten_config,
    load_saved_config,
    load_variables,
)
from jaxseg.config import override_config
from jaxseg.data import submission
from jaxseg.data.datasets import custom
from jaxseg.data.evaluation_images import evaluation_images
from jaxseg.data.source import Source, evaluated_on
from jaxseg.distributed import multihost
from jaxseg.distributed.sharding import infer_shardings, make_mesh
from jaxseg.evaluation import metrics
from jaxseg.evaluation.gallery import Gallery
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.inference.predictor import make_predictor
from jaxseg.models import kernels, segmentor
from jaxseg.reporting import report


class Stopped(Exception):
    """The evaluation was asked to stop before its end."""


def evaluate(
    model: segmentor.Segmentor,
    variables: segmentor.Variables,
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
    return metrics.scores(_sum_over_processes(total))


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


def evaluate_checkpoint(
    path: str, config: ConfigDict | None, workdir: pathlib.Path, overrides: Sequence[str] = ()
):
    """Evaluates a saved run and writes the scores and pictures to `workdir`.

    Raises and takes what `load` does.
    """
    step, config, model, variables, mesh = load(path, config, overrides)
    pictures = workdir / "predictions" / f"step_{step:06d}"
    scores = evaluate(model, variables, config, mesh, pictures=pictures)
    classes = evaluated_on(config.data).dataset.classes
    if jax.process_index() == 0:
        report.print_evaluation(scores, classes)
        report.write_evaluation(workdir, scores, classes)
        print(f"val mIoU = {scores.miou:.3f}\npictures in {pictures}")


def write_submission(
    path: str, config: ConfigDict | None, workdir: pathlib.Path, overrides: Sequence[str] = ()
):
    """Writes class maps of the validation split, labelled or not, as the benchmark's server takes
    them (`jaxseg.data.submission`), to `workdir`/submission.

    Takes what `load` does.

    Raises:
      ConfigError: for a dataset without a form for submissions, and as `load` does.
    """
    _, config, model, variables, mesh = load(path, config, overrides)
    source = dataclasses.replace(evaluated_on(config.data), labelled=False)
    submission.check(source.dataset)
    samples, folder = source.samples(), workdir / "submission"
    folder.mkdir(parents=True, exist_ok=True)

    def write(index, _, class_map):
        submission.write(folder, source.dataset, samples[index], class_map)

    evaluate(model, variables, config, mesh, source=source, on_image=write)
    if jax.process_index() == 0:
        print(f"{len(samples)} class maps in {folder}")


def load(path: str, config: ConfigDict | None, overrides: Sequence[str]):
    """(step, config, model, variables, mesh) of a saved run, for its evaluation.

    Args:
      path: a run's directory (its best checkpoint) or one checkpoint.
      config: evaluate this model with this data; None takes what the checkpoint was made with.
      overrides: of the checkpoint's config, as `--config.KEY=VALUE`.

    Raises:
      CheckpointError: where there is no checkpoint, or where it is of another model.
      ConfigError: for sizes that the model cannot take.
    """
    checkpoint = find_checkpoint(path)
    if config is None:
        stored = load_saved_config(checkpoint)
        stored["model"].setdefault("kernels", "auto")  # which is newer than some checkpoints
        config = ConfigDict(stored)
        override_config(config, overrides)
        custom.fill_in(config)
    kernel_setting, _ = kernels.setting(config.model)
    settings = flatten_config(config.to_dict()) | {"model.kernels": kernel_setting}
    multihost.check_same(settings)
    check_image_sizes(config)
    mesh = make_mesh(config.mesh)
    kernels.check(config.model, mesh.devices.flat[0].platform)
    model = segmentor.build(config.model)
    variables = load_variables(checkpoint, abstract_variables(model, config, mesh))
    return int(checkpoint.name), config, model, variables, mesh


def abstract_variables(model: segmentor.Segmentor, config: ConfigDict, mesh: Mesh):
    """Shapes, types and shardings of a model's variables."""
    shapes = segmentor.shapes(model)
    shardings = infer_shardings(shapes, config.sharding, mesh)
    return jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, shardings)
