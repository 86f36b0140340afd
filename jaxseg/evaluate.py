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
from jaxseg.models import kernels, segmentor


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
        results.print_evaluation(scores, classes)
        results.write_evaluation(workdir, scores, classes)
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
    kernel_setting, _ = kernels.setting(config.model)
    settings = flatten_config(config.to_dict()) | {"model.kernels": kernel_setting}
    multihost.check_same(settings)
    check_image_sizes(config)
    mesh = make_mesh(config.mesh)
    kernels.check(config.model, mesh.devices.flat[0].platform)
    model = segmentor.build(config.model)
    shapes = segmentor.shapes(model)
    shardings = infer_shardings(shapes, config.sharding, mesh)
    variables = load_variables(checkpoint, with_shardings(shapes, shardings))
    return int(checkpoint.name), config, model, variables, mesh
