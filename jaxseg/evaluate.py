"""Evaluates a saved run: scores, or class maps for a test server."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import pretrained
from jaxseg.checkpoints.weights import load_saved_config, load_variables
from jaxseg.config import flatten_config, override_config
from jaxseg.data import submission
from jaxseg.data.source import evaluated_on
from jaxseg.distributed import multihost
from jaxseg.distributed.sharding import infer_shardings, make_mesh, with_shardings
from jaxseg.evaluation import results
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.evaluation.metrics import Scores
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models import kernels
from jaxseg.models.segmentation_model import (
    SegmentationModel,
    Variables,
    build_model,
    variable_shapes,
)
from jaxseg.workdir import WorkDirectory


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A model from a checkpoint, on the devices of a mesh.

    Attributes:
      step: the step of the checkpoint.
      config: what is evaluated, and how.
    """

    step: int
    config: ConfigDict
    model: SegmentationModel
    variables: Variables
    mesh: Mesh


def evaluate_checkpoint(
    checkpoint: str | pathlib.Path,
    workdir: str | pathlib.Path,
    config: ConfigDict | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Scores:
    """Evaluates a saved run, and writes scores and pictures to `workdir`.

    Args:
      checkpoint: a run's directory, which means its best checkpoint; one checkpoint; zoo:NAME for a
        published model; or a PyTorch file or an address of the Hugging Face Hub, as
        `Segmenter.from_pretrained` takes them.
      workdir: the directory to write to, or gs://BUCKET/PATH; made if it is missing.
      config: a model and data to evaluate; by default those of the checkpoint.
      overrides: changes to the checkpoint's config, as `jaxseg.load_config` takes them.

    Returns:
      The scores, the same on all processes.

    Raises:
      CheckpointError: if there is no checkpoint, or it belongs to another model.
      ConfigError: for settings that do not exist, or sizes that the model cannot take.
      DataError: if images or labels are missing or bad.
    """
    run = load_saved_run(checkpoint, config, overrides)
    where = pathlib.Path("predictions", f"step_{run.step:06d}")
    if jax.process_index() == 0:
        print(evaluated_on(run.config.data).summary(), flush=True)
    with WorkDirectory(workdir) as directory:
        pictures = directory.folder / where
        scores = evaluate(run.model, run.variables, run.config, run.mesh, pictures=pictures)
        classes = evaluated_on(run.config.data).dataset.classes
        if jax.process_index() == 0:
            results.print_evaluation(scores, classes)
            evaluated = results.what_was_evaluated(run.config, run.step)
            results.write_evaluation(directory.folder, scores, classes, evaluated)
            print(f"val mIoU = {scores.miou:.3f}\npictures in {directory.path / where}")
    return scores


def write_submission(
    checkpoint: str | pathlib.Path,
    workdir: str | pathlib.Path,
    config: ConfigDict | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
):
    """Writes class maps of the validation split to `workdir`/submission, for a test server.

    The split needs no labels. The files have the form that the benchmark's server takes
    (`jaxseg.data.submission`). Arguments are those of `evaluate_checkpoint`.

    Raises:
      ConfigError: for a dataset without such a server, and as `evaluate_checkpoint`.
      DataError: if two images would be written as the same file, and as `evaluate_checkpoint`.
      CheckpointError: as `evaluate_checkpoint`.
    """
    run = load_saved_run(checkpoint, config, overrides)
    source = dataclasses.replace(evaluated_on(run.config.data), labeled=False)
    submission.check_submission(source.dataset)
    samples = source.samples()
    submission.check_file_names(samples)
    with WorkDirectory(workdir) as directory:

        def write(index, _, class_map):
            folder = directory.folder / "submission"
            submission.write_class_map(folder, source.dataset, samples[index], class_map)

        evaluate(run.model, run.variables, run.config, run.mesh, source=source, on_image=write)
        if jax.process_index() == 0:
            print(f"{len(samples)} class maps in {directory.path / 'submission'}")


def load_saved_run(
    checkpoint: str | pathlib.Path,
    config: ConfigDict | None,
    overrides: Sequence[str] | Mapping[str, Any],
) -> SavedRun:
    """Loads a saved run for its evaluation, sharded over all devices.

    Arguments are those of `evaluate_checkpoint`.

    Raises:
      CheckpointError: if there is no checkpoint, or it belongs to another model.
      ConfigError: for settings that do not exist, or sizes that the model cannot take.
    """
    checkpoint = pretrained.find(checkpoint, config)
    if config is None:
        config = ConfigDict(load_saved_config(checkpoint))
        override_config(config, overrides)
    kernel_setting, _ = kernels.kernel_setting(config.model)
    settings = flatten_config(config.to_dict()) | {"model.kernels": kernel_setting}
    multihost.check_same_config(settings)
    check_image_sizes(config)
    mesh = make_mesh(config.mesh)
    kernels.check_kernels(config.model, mesh.devices.flat[0].platform)
    model = build_model(config.model)
    shapes = variable_shapes(model)
    shardings = infer_shardings(shapes, config.sharding, mesh)
    variables = load_variables(checkpoint, with_shardings(shapes, shardings))
    return SavedRun(int(checkpoint.name), config, model, variables, mesh)
