"""Evaluation of a model on a dataset, over all devices."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from jaxseg.checkpoints.weights import find_checkpoint, load_saved_config, load_variables
from jaxseg.config import flatten_config, override_config
from jaxseg.data import submission
from jaxseg.data.source import evaluated_on
from jaxseg.distributed import multihost
from jaxseg.distributed.sharding import infer_shardings, make_mesh, with_shardings
from jaxseg.evaluation import results
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models import kernels
from jaxseg.models.segmentation_model import build_model, variable_shapes


def evaluate_checkpoint(
    path: str, config: ConfigDict | None, workdir: pathlib.Path, overrides: Sequence[str] = ()
):
    """Evaluates a saved run and writes the scores and pictures to `workdir`.

    Raises and takes what `load` does.
    """
    step, config, model, variables, mesh = load_saved_run(path, config, overrides)
    pictures = workdir / "predictions" / f"step_{step:06d}"
    scores = evaluate(model, variables, config, mesh, pictures=pictures)
    classes = evaluated_on(config.data).dataset.classes
    if jax.process_index() == 0:
        results.print_evaluation(scores, classes)
        results.write_evaluation(workdir, scores, classes)
        print(f"val mIoU = {scores.miou:.3f}\npictures in {pictures}")


def write_submission(
    path: str, config: ConfigDict | None, workdir: pathlib.Path, overrides: Sequence[str] = ()
):
    """Writes class maps of the validation split, labeled or not, as the benchmark's server takes
    them (`jaxseg.data.submission`), to `workdir`/submission.

    Takes what `load` does.

    Raises:
      ConfigError: for a dataset without a form for submissions, and as `load` does.
    """
    _, config, model, variables, mesh = load_saved_run(path, config, overrides)
    source = dataclasses.replace(evaluated_on(config.data), labeled=False)
    submission.check_submission(source.dataset)
    samples, folder = source.samples(), workdir / "submission"
    folder.mkdir(parents=True, exist_ok=True)

    def write(index, _, class_map):
        submission.write_class_map(folder, source.dataset, samples[index], class_map)

    evaluate(model, variables, config, mesh, source=source, on_image=write)
    if jax.process_index() == 0:
        print(f"{len(samples)} class maps in {folder}")


def load_saved_run(path: str, config: ConfigDict | None, overrides: Sequence[str]):
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
    return int(checkpoint.name), config, model, variables, mesh
