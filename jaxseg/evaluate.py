"""Evaluation of a model on a dataset, over all devices."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxseg import (
    checkpoints,
    config_files,
    image_sizes,
    inference,
    metrics,
    parallel,
    report,
)
from jaxseg.data import custom, datasets, submission
from jaxseg.data.evaluation import evaluation_batches
from jaxseg.gallery import Gallery
from jaxseg.models import segmentor


class Stopped(Exception):
    """The evaluation was asked to stop before its end."""


@functools.cache
def _make_step(
    model: segmentor.Segmentor,
    protocol: inference.Protocol,
    num_classes: int,
    outputs: int | None,
    mesh: Mesh,
) -> Callable:
    """(variables, images, labels) -> (confusion of the batch, class maps).

    Only the first `outputs` of the head are looked at, or all.
    """

    def step(variables, images, labels):
        forward = inference.forward_of(model, variables, outputs)
        scores = inference.scores(forward, images, labels.shape[1:], protocol)
        prediction = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        confusion = metrics.confusion_matrix(prediction, labels.astype(jnp.int32), num_classes)
        return confusion, prediction.astype(jnp.uint8)

    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, parallel.BATCH)
    return jax.jit(step, out_shardings=(whole, split))


def evaluate(
    model: segmentor.Segmentor,
    variables: segmentor.Variables,
    config: ConfigDict,
    mesh: Mesh,
    *,
    source: datasets.Source | None = None,
    pictures: pathlib.Path | None = None,
    on_image: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> metrics.Scores:
    """Scores of a model on the validation split, every image at its own size.

    The images are split over all devices, whole or in windows as `config.eval` has it; a batch that
    does not fill them is filled with ignored pixels. Counts are added up in int64 on the host.

    Args:
      variables: on the devices of `mesh`, however they are sharded.
      source: evaluated on; the validation split where None.
      pictures: where to write panels of the first `config.eval.pictures` images and of as many of
        the worst, with a table of all (`jaxseg.gallery`), if anywhere.
      on_image: called, where there are no pictures, with the index of each sample of this process,
        its label and its class map, both uint8 [h, w].
      stop: asked before every batch.

    Raises:
      Stopped: when `stop()` is true.
      DataError: where a sample is missing or bad.
      ConfigError: where `config.eval` describes windows that cannot be.
    """
    source = source or datasets.evaluated_on(config.data)
    dataset, samples = source.dataset, source.samples()
    outputs = len(dataset.classes) if config.eval.mask_absent_classes else None
    protocol = inference.protocol_of(config.eval)
    step = _make_step(model, protocol, len(dataset.classes), outputs, mesh)
    total = np.zeros((len(dataset.classes) + 1,) * 2, np.int64)
    if pictures:
        gallery = Gallery(pictures, samples, dataset, config.eval.pictures)
        on_image = gallery.add
    with jax.set_mesh(mesh):
        for batch in _batches(samples, config, mesh):
            if stop():
                raise Stopped
            arrays = parallel.put_batch({k: batch[k] for k in ("image", "label")}, mesh)
            confusion, prediction = step(variables, arrays["image"], arrays["label"])
            if on_image:
                rows = batch["index"], batch["label"], parallel.local_rows(prediction)
                for index, label, class_map in zip(*rows, strict=True):
                    if index >= 0:
                        on_image(index, label, class_map)
            total += np.asarray(confusion, np.int64)
    if pictures:
        gallery.close()
    return metrics.scores(total)


def _batches(samples, config, mesh) -> Iterator[dict[str, np.ndarray]]:
    return evaluation_batches(
        samples,
        config.data,
        batch_size=mesh.size * config.eval.images_per_device,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def evaluate_checkpoint(
    path: str, config: ConfigDict | None, workdir: pathlib.Path, overrides: Sequence[str] = ()
):
    """Evaluates a saved run and writes the scores and pictures to `workdir`.

    Raises and takes what `load` does.
    """
    step, config, model, variables, mesh = load(path, config, overrides)
    pictures = workdir / "predictions" / f"step_{step:06d}"
    scores = evaluate(model, variables, config, mesh, pictures=pictures)
    classes = datasets.evaluated_on(config.data).dataset.classes
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
    source = dataclasses.replace(datasets.evaluated_on(config.data), labelled=False)
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
    checkpoint = checkpoints.find(path)
    if config is None:
        config = ConfigDict(checkpoints.load_config(checkpoint))
        config_files.override(config, overrides)
        custom.fill_in(config)
    image_sizes.check(config)
    mesh = parallel.make_mesh(config.mesh)
    model = segmentor.build(config.model)
    variables = checkpoints.load_variables(checkpoint, abstract_variables(model, config, mesh))
    return int(checkpoint.name), config, model, variables, mesh


def abstract_variables(model: segmentor.Segmentor, config: ConfigDict, mesh: Mesh):
    """Shapes, types and shardings of a model's variables."""
    shapes = segmentor.shapes(model)
    shardings = parallel.infer(shapes, config.sharding, mesh)
    return jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, shardings)
