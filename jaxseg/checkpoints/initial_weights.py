"""Loads initial weights from another run, a PyTorch file or a published model (`config.init`)."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxseg import parameter_paths, siblings
from jaxseg.checkpoints.weights import find_checkpoint, load_variables, stored_shapes
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.transfer import fresh_variables, head_name
from jaxseg.workdir import AnyPath, any_path, reaching
from jaxseg.zoo import catalogue, hub

siblings.claim("converters")

from converters import torch_weights  # noqa: E402
from converters.pretrained import relative_tables  # noqa: E402
from converters.torch_files import shards  # noqa: E402

ZOO = "zoo:"


def check_available(source: str) -> AnyPath:
    """Returns the file or directory that `source` refers to, and downloads it if necessary.

    Args:
      source: a run's directory or one of its checkpoints, a PyTorch file, a folder of
        `Segmenter.save_pretrained`, zoo:NAME, or an address of the Hugging Face Hub (`zoo.hub`).

    Raises:
      ConfigError: if there is no such source, or a package for it is missing.
      CheckpointError: if it cannot be downloaded, or a bucket cannot be reached.
    """
    if source.startswith(ZOO):
        return catalogue.fetch_weights(source.removeprefix(ZOO))
    path = hub.fetch(source) if source.startswith(hub.PREFIX) else any_path(source)
    with reaching(path, CheckpointError):
        if not path.exists():
            raise ConfigError(
                f"config.init={source}: there is no such file or directory; it can be a run's"
                f" directory, a PyTorch file, {ZOO}NAME (jaxseg zoo) or"
                f" {hub.PREFIX}OWNER/REPOSITORY, or empty to start from scratch"
            )
        return path / hub.WEIGHTS if hub.is_published(path) else path


def load_initial_weights(
    source: str, fresh: Mapping[str, Any], model: str, window: tuple[int, int] | None = None
) -> tuple[dict[str, Any], str]:
    """Replaces fresh variables by the values of `source`, with the shardings of the fresh ones.

    The backbone must be the same. Only tables of relative positions may have another window, and
    these are resized. A head stays fresh if `source` lacks it or has another kind or number of
    classes (`jaxseg.models.transfer`). Variables that pre-trained backbones never have stay fresh
    too.

    Args:
      source: as `check_available` takes it.
      fresh: {"params", "batch_stats"} as initialized.
      model: name of the model in messages.
      window: window of the model's tables of relative positions, in patches. None is a square one.

    Returns:
      The variables, and a sentence for the log that says what was loaded from where.

    Raises:
      ConfigError: if there is no such source.
      CheckpointError: if it cannot be read, or its backbone belongs to another model.
    """
    path = check_available(source)
    leaves = parameter_paths.by_path(fresh)
    if path.is_dir() and not shards.index_beside(path):
        (loaded, kept, tables), taken_off = _of_run(path, leaves, window), ()
    else:
        weights = torch_weights.read_weights(
            path, parameter_paths.shapes(fresh), model=model, transfer=True, window=window
        )
        kept, tables, taken_off = weights.plan.initial, weights.plan.tables, weights.taken_off
        loaded = {name: _placed(array, leaves[name]) for name, array in weights.arrays.items()}
    made = collections.Counter(table.why for table in tables.values())
    initial = collections.Counter(kept.values())
    notes = [f"{len(loaded)} tensors of {source}"]
    notes += [f"{', '.join(taken_off)} taken off their names"] * bool(taken_off)
    notes += [f"of these {count} {why}" for why, count in made.items()]
    notes += [f"{count} tensors as initialized: {why}" for why, count in initial.items()]
    return parameter_paths.nested(leaves | loaded), "; ".join(notes)


def _of_run(path, leaves, window):
    """Loads from another run: values by path, why variables stay fresh by path, resized tables."""
    checkpoint = find_checkpoint(path)
    stored, wanted = stored_shapes(checkpoint), {n: leaf.shape for n, leaf in leaves.items()}
    kept = fresh_variables(stored, wanted)
    taken = {name: leaf for name, leaf in leaves.items() if name not in kept}
    other_heads = {name for name in stored if name not in taken and head_name(name)}
    tables = relative_tables(stored, wanted, window)
    abstract = {
        name: jax.ShapeDtypeStruct(
            stored[name] if name in tables else leaf.shape, leaf.dtype, sharding=leaf.sharding
        )
        for name, leaf in taken.items()
    }
    variables = load_variables(checkpoint, parameter_paths.nested(abstract), other_heads)
    values = parameter_paths.by_path(variables)
    for name, table in tables.items():
        values[name] = _placed(table.made_from(np.asarray(values[name])), leaves[name])
    return values, kept, tables


def _placed(array: np.ndarray, leaf: jax.Array) -> jax.Array:
    """Copies `array` to the type and sharding of `leaf`. Each process reads only its own shards."""
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: np.array(array[index], leaf.dtype, order="C")
    )
