"""Finds, reads and writes the model part of checkpoints."""

import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from jaxseg import parameter_paths
from jaxseg.config import upgrade
from jaxseg.distributed.sharding import replicated_like, with_shardings
from jaxseg.errors import CheckpointError, OutputError, first_few, first_line
from jaxseg.models import lora
from jaxseg.models.segmentation_model import SegmentationModel, Variables, variable_shapes
from jaxseg.workdir import CHECKPOINTS, AnyPath, any_path, reaching


def find_checkpoint(path: str | os.PathLike) -> AnyPath:
    """Returns the checkpoint that `path` refers to.

    Args:
      path: a checkpoint, or the directory of a run, also in a bucket (gs://). Of a run, the
        checkpoint with the highest mIoU is chosen, or the newest if none was evaluated.

    Raises:
      CheckpointError: if there is no checkpoint, or a bucket cannot be reached.
    """
    path = any_path(path)
    with reaching(path, CheckpointError):
        if path.is_file():
            raise CheckpointError(
                f"{path} is a file; convert a PyTorch checkpoint first: jaxseg convert"
            )
        if path.name.isdigit() and path.is_dir():
            return path
        directory = path / CHECKPOINTS
        found = []
        if directory.is_dir():
            with ocp.training.Checkpointer(directory) as checkpointer:
                found = list(checkpointer.checkpoints)
        if not found:
            raise CheckpointError(
                f"no checkpoint in {path}; give a run's work directory or one of its"
                " checkpoints/STEP"
            )
        best = max(found, key=lambda c: ((c.metrics or {}).get("mIoU", -1.0), c.step))
        return directory / str(best.step)


def save_weights(directory: pathlib.Path, variables: Mapping[str, Any], config: Mapping[str, Any]):
    """Writes a checkpoint of weights without optimizer state.

    It can be evaluated, used for prediction, or trained from. Arrays are written one at a time, so
    that variables that are views of a file take little memory.

    Args:
      directory: the work directory to create.
      variables: {"params", "batch_stats"}.
      config: the resolved config of the model.

    Raises:
      CheckpointError: if `directory` already has checkpoints or is a file.
    """
    checkpoint = pathlib.Path(directory).absolute() / "checkpoints" / "0"
    if checkpoint.parent.exists():
        raise CheckpointError(f"{directory} already has checkpoints; choose another directory")
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; choose a directory")
    context = ocp.Context()
    # OCDBT, Orbax's own database format, would be assembled in memory.
    context.array.saving.use_ocdbt = False
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = 1 << 28
    metadata = {"config": json.loads(json.dumps(config))}
    try:
        with context:
            ocp.save_checkpointables(checkpoint, {"model": variables}, custom_metadata=metadata)
    except Exception as error:  # of several kinds, by the library that was writing
        raise OutputError(f"cannot write {checkpoint}: {first_line(error)}") from error


def load_saved_config(checkpoint: AnyPath) -> dict[str, Any]:
    """Returns the resolved config that a checkpoint was made with.

    A config of an earlier version is upgraded.
    """
    return config_from_json(ocp.checkpointables_metadata(checkpoint).custom_metadata["config"])


def newest_saved_config(checkpoints: AnyPath) -> dict[str, Any] | None:
    """Returns the config of a run's newest checkpoint whose config can be read, or None.

    Args:
      checkpoints: the directory of the run's checkpoints.
    """
    steps = sorted(int(path.name) for path in checkpoints.glob("[0-9]*") if path.name.isdigit())
    for step in reversed(steps):
        try:
            return load_saved_config(checkpoints / str(step))
        except Exception as error:  # of several kinds; restoring tells why and takes an earlier one
            logging.info("no config in %s: %s", checkpoints / str(step), first_line(error))
    return None


def config_from_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a resolved config that was stored as JSON, upgraded to this version."""
    upgraded = _with_tuples(config)
    upgrade(upgraded)
    return upgraded


def load_images_taken(checkpoint: AnyPath) -> int:
    """Returns how many training images were taken before a checkpoint, over all epochs."""
    metadata = ocp.checkpointables_metadata(checkpoint).custom_metadata
    of_earlier_versions = int(checkpoint.name) * metadata["config"]["batch_size"]
    return metadata.get("images_taken", of_earlier_versions)


def load_metrics(checkpoint: AnyPath) -> dict[str, Any] | None:
    """Returns the `metrics.json` of a run if its scores are those of this checkpoint, else None."""
    path = checkpoint.parents[1] / "metrics.json"
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    return metrics if metrics.get("step") == int(checkpoint.name) else None


def _with_tuples(value: Any) -> Any:
    """Turns lists into tuples, because JSON has no tuples and configs have no lists."""
    match value:
        case dict():
            return {key: _with_tuples(item) for key, item in value.items()}
        case list():
            return tuple(map(_with_tuples, value))
    return value


def stored_shapes(checkpoint: AnyPath) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the variables that `load_variables` gives of a checkpoint, by path."""
    stored = _all_stored_shapes(checkpoint)
    return {path: shape for path, shape in stored.items() if not lora.is_low_rank(path)}


def _all_stored_shapes(checkpoint):
    model = ocp.checkpointables_metadata(checkpoint).metadata["model"]
    return parameter_paths.shapes({part: model[part] for part in ("params", "batch_stats")})


def load_variables(
    checkpoint: AnyPath, abstract: Mapping[str, Any], leave: Collection[str] = ()
) -> dict[str, Any]:
    """Loads the variables to evaluate, with the moving average if the run kept one.

    Low-rank adaptations are added to their kernels.

    Args:
      checkpoint: the directory of the checkpoint.
      abstract: shapes, types and shardings of {"params", "batch_stats"}.
      leave: paths of variables in the checkpoint that are not read.

    Raises:
      CheckpointError: if the checkpoint belongs to another model.
    """
    wanted, stored = parameter_paths.by_path(abstract), _all_stored_shapes(checkpoint)
    low_rank = {path: shape for path, shape in stored.items() if lora.is_low_rank(path)}
    leave = {*leave, *(path for path in low_rank if lora.kernel_of(path) in leave)}
    low_rank = {path: shape for path, shape in low_rank.items() if path not in leave}
    kept = {path: shape for path, shape in stored.items() if path not in {*leave, *low_rank}}
    _refuse_another_model(kept, parameter_paths.shapes(abstract), checkpoint)
    everywhere = replicated_like(next(iter(wanted.values())))
    asked = wanted | {
        path: jax.ShapeDtypeStruct(shape, np.float32, sharding=everywhere)
        for path, shape in low_rank.items()
    }
    request = {path: ocp.PLACEHOLDER if path in leave else asked[path] for path in stored}
    averaged = "ema" in ocp.checkpointables_metadata(checkpoint).metadata["model"]
    if averaged:
        ema = {p.replace("params", "ema", 1): x for p, x in request.items() if _is_parameter(p)}
        request |= {path: ocp.PLACEHOLDER for path in stored if _is_parameter(path)} | ema
    model = ocp.load_checkpointables(checkpoint, {"model": parameter_paths.nested(request)})[
        "model"
    ]
    model = parameter_paths.by_path({**model, "params": model["ema"]} if averaged else model)
    if low_rank:
        model = lora.merge_low_rank(model)
    return parameter_paths.nested({path: model[path] for path in wanted})


def load_leaves(checkpoint: AnyPath, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Loads some variables as they are stored, with the moving average if the run kept one.

    Args:
      checkpoint: the directory of the checkpoint.
      wanted: whether the variable of a path, such as "params/decode_head/conv_seg/kernel", is read.

    Returns:
      The variables by path.
    """
    stored = ocp.checkpointables_metadata(checkpoint).metadata["model"]
    leaves = parameter_paths.by_path(stored)
    averaged = "ema" in stored

    def as_asked(path):
        return path.replace("ema", "params", 1) if path.startswith("ema/") else path

    read = [
        path for path in leaves if not (averaged and _is_parameter(path)) and wanted(as_asked(path))
    ]
    request = {
        path: np.zeros(leaf.shape, leaf.dtype) if path in read else ocp.PLACEHOLDER
        for path, leaf in leaves.items()
    }
    model = ocp.load_checkpointables(checkpoint, {"model": parameter_paths.nested(request)})[
        "model"
    ]
    found = parameter_paths.by_path(model)
    return {as_asked(path): np.asarray(found[path]) for path in read}


def load_on_device(
    checkpoint: AnyPath, model: SegmentationModel, device: jax.Device | None = None
) -> Variables:
    """Loads the variables of `model` onto one device, by default the first of this process.

    Raises:
      CheckpointError: if the checkpoint belongs to another model.
    """
    sharding = jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
    return load_variables(checkpoint, with_shardings(variable_shapes(model), sharding))


def _is_parameter(path):
    return path.startswith("params/")


def _refuse_another_model(stored, wanted, checkpoint):
    different = [
        f"{key}: {stored.get(key, 'absent')} in the checkpoint, {wanted.get(key, 'absent')} here"
        for key in sorted(stored | wanted)
        if stored.get(key) != wanted.get(key)
    ]
    if different:
        raise CheckpointError(f"{checkpoint} is of another model:{first_few(different, 8)}")
