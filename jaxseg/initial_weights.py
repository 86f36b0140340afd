"""Weights to start from: another run, a PyTorch file, or a published model (`config.init`)."""

import collections
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from converters import convert
from jaxseg import checkpoints, paths, zoo
from jaxseg.errors import ConfigError
from jaxseg.transfer import fresh_variables, of_head

ZOO = "zoo:"


def locate(source: str) -> pathlib.Path:
    """The file or directory that `source` means, downloaded if need be.

    Raises:
      ConfigError: where there is none.
      CheckpointError: where it cannot be downloaded.
    """
    if source.startswith(ZOO):
        return zoo.file(source.removeprefix(ZOO))
    if not pathlib.Path(source).exists():
        raise ConfigError(
            f"config.init={source}: there is no such file or directory; it can be a run's"
            f" directory, a PyTorch file or {ZOO}NAME (python -m jaxseg.zoo), or empty to start"
            " from scratch"
        )
    return pathlib.Path(source)


def load(source: str, fresh: Mapping[str, Any], model: str) -> tuple[dict[str, Any], str]:
    """The variables `fresh` with the values of `source` in their places, sharded as they are.

    The backbone has to be the same; a head that is missing in `source`, or is of another kind or
    number of classes, stays fresh (`jaxseg.transfer`).

    Args:
      source: a run's directory or one of its checkpoints, a PyTorch file, or zoo:NAME.
      fresh: {"params", "batch_stats"} as initialised.
      model: what the model is called in messages.

    Returns:
      The variables, and what was taken from where, for the log.

    Raises:
      ConfigError: where there is no such source.
      CheckpointError: where it cannot be read, or its backbone is of another model.
    """
    path = locate(source)
    leaves = paths.by_path(fresh)
    if path.is_dir():
        loaded, kept = _of_run(path, leaves)
    else:
        weights = convert.read(path, paths.shapes(fresh), model=model, transfer=True)
        kept = weights.plan.derived | weights.plan.fresh
        loaded = {name: _placed(array, leaves[name]) for name, array in weights.arrays.items()}
    reasons = collections.Counter(kept.values())
    notes = "; ".join(
        f"{count} tensors as initialised: {reason}" for reason, count in reasons.items()
    )
    origin = f"{len(loaded)} tensors of {source}" + (f"; {notes}" if notes else "")
    return paths.nested(leaves | loaded), origin


def _of_run(path, leaves):
    """(values by path, reason by path of what stays fresh) of another run."""
    checkpoint = checkpoints.find(path)
    stored = checkpoints.shapes(checkpoint)
    kept = fresh_variables(stored, {name: leaf.shape for name, leaf in leaves.items()})
    taken = {name: leaf for name, leaf in leaves.items() if name not in kept}
    other_heads = {name for name in stored if name not in taken and of_head(name)}
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), taken
    )
    variables = checkpoints.load_variables(checkpoint, paths.nested(abstract), other_heads)
    return paths.by_path(variables), kept


def _placed(array: np.ndarray, leaf: jax.Array) -> jax.Array:
    """`array` with the type and sharding of `leaf`; every process reads its own part only."""
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: np.array(array[index], leaf.dtype, order="C")
    )
