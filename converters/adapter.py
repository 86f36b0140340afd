"""Writes what a run has trained into a small folder, and makes a whole model of it again.

jaxseg adapter --checkpoint RUN --output FOLDER
jaxseg adapter --apply FOLDER --output DIR

A run that freezes most of its parameters (`config.optim.freeze`, `config.optim.lora`) differs from
the weights it started from in few of them. The folder holds these alone, `adapter.safetensors`, and
`adapter.json`, with the config and a hash of the others. The second command reads the weights that
`config.init` names, checks the hash, puts the trained ones in their place, adds products of low
rank to their kernels, and writes a checkpoint.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from converters.torch_files.torch_file import read_torch_file
from converters.torch_files.torch_writer import write_torch_file
from jaxseg import configure_cpu
from jaxseg.atomic_files import write_text
from jaxseg.checkpoints.initial_weights import load_initial_weights
from jaxseg.checkpoints.weights import (
    config_from_json,
    find_checkpoint,
    load_leaves,
    load_saved_config,
    save_weights,
)
from jaxseg.distributed import start
from jaxseg.errors import CheckpointError, ConfigError, exit_with_message
from jaxseg.models.lora import is_low_rank, merge_low_rank
from jaxseg.models.segmentation_model import build_model, init_variables, variable_shapes
from jaxseg.parameter_paths import by_path, nested
from jaxseg.training.freezing import frozen_patterns, is_frozen

WEIGHTS, RECORD = "adapter.safetensors", "adapter.json"


def write_adapter(checkpoint: str | pathlib.Path, folder: pathlib.Path) -> int:
    """Writes the trained variables of a run and returns their number.

    If the run kept a moving average of the weights, the average is written.

    Args:
      checkpoint: a run's directory or one of its checkpoints.
      folder: where the files are written; made if it is missing.

    Raises:
      CheckpointError: if there is no checkpoint.
      ConfigError: if the run freezes nothing, or started from random weights.
      OutputError: if a file cannot be written.
    """
    checkpoint = find_checkpoint(checkpoint)
    config = ConfigDict(load_saved_config(checkpoint))
    patterns = frozen_patterns(config.optim)
    if not (patterns and config.init):
        raise ConfigError(
            f"{checkpoint}: the run has no frozen parameters that config.init would give again;"
            " config.optim.freeze or config.optim.lora, and config.init, must be set in training"
        )

    def is_trained(path):
        return is_low_rank(path) or not is_frozen(path.partition("/")[2], patterns)

    leaves = load_leaves(checkpoint, lambda path: True)
    trained = {path: leaf for path, leaf in leaves.items() if is_trained(path)}
    write_torch_file(folder / WEIGHTS, trained)
    others = {path: leaf for path, leaf in leaves.items() if path not in trained}
    record = {"frozen_sha256": hash_of(others), "config": config.to_dict()}
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    return len(trained)


def hash_of(leaves: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of arrays, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(leaves):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaves[path]).tobytes())
    return digest.hexdigest()


def apply_adapter(folder: pathlib.Path, output: pathlib.Path) -> str:
    """Writes a checkpoint of the whole model to `output`.

    Args:
      folder: what `write_adapter` wrote.
      output: a directory without checkpoints.

    Returns:
      A sentence that says what was loaded from where.

    Raises:
      CheckpointError: if the folder or the weights of `config.init` cannot be read or do not fit,
        or `output` is taken.
      ConfigError: if there is no such source.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        config, expected = ConfigDict(config_from_json(record["config"])), record["frozen_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD} cannot be read: {error}") from error
    model = build_model(config.model)
    fresh = jax.jit(
        lambda: init_variables(model, jax.random.key(config.seed), config.data.crop_hw)
    )()
    window = config.model.backbone.get("window")
    variables, said = load_initial_weights(config.init, fresh, config.variant, window)
    stored = read_torch_file(folder / WEIGHTS)
    assert isinstance(stored, dict)  # a .safetensors has tensors by name
    trained = {path: np.asarray(leaf) for path, leaf in stored.items()}
    started = by_path(variables)
    others = {path: np.asarray(leaf) for path, leaf in started.items() if path not in trained}
    merged = merge_low_rank(started | trained)
    wanted = by_path(variable_shapes(model))
    if different := sorted(
        path
        for path in merged.keys() | wanted.keys()
        if path not in merged or path not in wanted or merged[path].shape != wanted[path].shape
    ):
        raise CheckpointError(f"{folder} is of another model: {different[0]} does not fit")
    if hash_of(others) != expected:
        raise CheckpointError(
            f"config.init={config.init} in {folder / RECORD} gives other weights than those that"
            " the run kept; edit the file to name the weights that the run started from"
        )
    save_weights(output, nested(merged), config.to_dict())
    return f"{said}; {len(trained)} tensors of {folder}"


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg adapter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="RUN", help="write its trained parameters")
    source.add_argument("--apply", type=pathlib.Path, metavar="FOLDER", help="make a whole model")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    options = parser.parse_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg adapter"):
        start.check_platform()
        if options.checkpoint:
            count = write_adapter(options.checkpoint, options.output)
            print(f"{options.checkpoint} -> {options.output}: {count} tensors")
        else:
            print(f"{options.output}: {apply_adapter(options.apply, options.output)}")


if __name__ == "__main__":
    main()
