"""Weights alone: finding, reading and writing the model part of a checkpoint."""

import json
import pathlib
from collections.abc import Container, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxseg import parameter_paths
from jaxseg.config import upgrade
from jaxseg.distributed.sharding import with_shardings
from jaxseg.errors import CheckpointError, first_few
from jaxseg.models.segmentation_model import SegmentationModel, Variables, variable_shapes


def find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
    """The checkpoint that `path` means: itself, or the best (else newest) of a run's directory.

    Raises:
      CheckpointError: where there is none.
    """
    path = pathlib.Path(path).absolute()
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; a PyTorch checkpoint is to be converted first: python -m"
            " converters.convert"
        )
    if path.name.isdigit() and path.is_dir():
        return path
    directory = path / "checkpoints"
    found = []
    if directory.is_dir():
        with ocp.training.Checkpointer(directory) as checkpointer:
            found = list(checkpointer.checkpoints)
    if not found:
        raise CheckpointError(
            f"no checkpoint in {path}; give a run's work directory or one of its checkpoints/STEP"
        )
    best = max(found, key=lambda c: ((c.metrics or {}).get("mIoU", -1.0), c.step))
    return directory / str(best.step)


def save_weights(directory: pathlib.Path, variables: Mapping[str, Any], config: Mapping[str, Any]):
    """Writes weights alone, for evaluation, prediction, and training to start from.

    Array by array, so that variables which lie in a file take little memory on their way.

    Raises:
      CheckpointError: where `directory` already has checkpoints.
    """
    checkpoint = pathlib.Path(directory).absolute() / "checkpoints" / "0"
    if checkpoint.parent.exists():
        raise CheckpointError(f"{directory} already has checkpoints; choose another directory")
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; choose a directory")
    context = ocp.Context()
    # Orbax's own database would be put together in memory.
    context.array.saving.use_ocdbt = False
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = 1 << 28
    metadata = {"config": json.loads(json.dumps(config))}
    with context:
        ocp.save_checkpointables(checkpoint, {"model": variables}, custom_metadata=metadata)


def load_saved_config(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The resolved config that a checkpoint was made with."""
    config = _with_tuples(ocp.checkpointables_metadata(checkpoint).custom_metadata["config"])
    upgrade(config)
    return config


def _with_tuples(value):
    """JSON has no tuples, and configs no lists."""
    match value:
        case dict():
            return {key: _with_tuples(item) for key, item in value.items()}
        case list():
            return tuple(map(_with_tuples, value))
    return value


def stored_shapes(checkpoint: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the variables in a checkpoint, by path."""
    model = ocp.checkpointables_metadata(checkpoint).metadata["model"]
    return parameter_paths.shapes({part: model[part] for part in ("params", "batch_stats")})


def load_variables(
    checkpoint: pathlib.Path, abstract: Mapping[str, Any], leave: Container[str] = ()
) -> dict[str, Any]:
    """The variables to evaluate: the moving average where the run kept one.

    Args:
      abstract: shapes, types and shardings of {"params", "batch_stats"}.
      leave: paths of what the checkpoint holds besides, not to be read.

    Raises:
      CheckpointError: where the checkpoint is of another model.
    """
    wanted, stored = parameter_paths.by_path(abstract), stored_shapes(checkpoint)
    kept = {path: shape for path, shape in stored.items() if path not in leave}
    _refuse_another_model(kept, parameter_paths.shapes(abstract), checkpoint)
    request = {path: ocp.PLACEHOLDER if path in leave else wanted[path] for path in stored}
    averaged = "ema" in ocp.checkpointables_metadata(checkpoint).metadata["model"]
    if averaged:
        ema = {p.replace("params", "ema", 1): x for p, x in request.items() if _is_parameter(p)}
        request |= {path: ocp.PLACEHOLDER for path in stored if _is_parameter(path)} | ema
    model = ocp.load_checkpointables(checkpoint, {"model": parameter_paths.nested(request)})[
        "model"
    ]
    model = parameter_paths.by_path({**model, "params": model["ema"]} if averaged else model)
    return parameter_paths.nested({path: model[path] for path in wanted})


def load_on_device(
    checkpoint: pathlib.Path, model: SegmentationModel, device: jax.Device | None = None
) -> Variables:
    """The variables of `model` on one device, by default the first of this process.

    Raises:
      CheckpointError: where the checkpoint is of another model.
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
