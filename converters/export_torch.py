"""Exports a jaxseg run as a PyTorch state dict with the names of the original code.

jaxseg export-torch --checkpoint RUN --output FILE.pth|FILE.safetensors
"""

import argparse
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from converters import dinov3, rules
from converters.pretrained import TABLE
from converters.torch_files import torch_writer
from jaxseg import configure_cpu, parameter_paths
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device, load_saved_config
from jaxseg.data.source import evaluated_on
from jaxseg.distributed import start
from jaxseg.errors import exit_with_message
from jaxseg.models.segmentation_model import build_model
from jaxseg.ops import position_tables
from pallas_kernels.relative_positions import relative_position_index


def to_state_dict(
    variables: Mapping[str, Any], window: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Converts variables to a PyTorch state dict, the inverse of `torch_weights.from_state_dict`.

    The result also has what PyTorch's loader requires in addition. The batch counters of batch norm
    are 0; nothing reads them. Every table of relative positions comes with an index that holds the
    row of every pair of tokens.

    Args:
      variables: {"params", "batch_stats"}.
      window: (height, width) of the tables of relative positions, in patches; None for square
        windows.

    Returns:
      PyTorch name -> tensor, channels first.
    """
    tensors = {}
    index_of = functools.cache(relative_position_index)
    for path, leaf in parameter_paths.by_path(variables).items():
        name = rules.to_name(path)
        tensors[name] = rules.to_channels_first(np.asarray(leaf), path)
        if name.endswith(".running_var"):
            counter = f"{name.removesuffix('running_var')}{rules.COUNTER}"
            tensors[counter] = np.zeros((), np.int64)
        if name.endswith(TABLE):
            hw = tuple(window or position_tables.square_window(len(leaf)))
            tensors[name.replace("bias_table", "index")] = index_of(hw)
    return tensors


def export(checkpoint: str | pathlib.Path, output: pathlib.Path) -> int:
    """Writes the weights of a run to a file and returns the number of tensors.

    If the run kept a moving average of the weights, the average is written.

    Args:
      checkpoint: a run's directory or one of its checkpoints.
      output: a .pth or .safetensors file.

    Raises:
      CheckpointError: if there is no checkpoint.
      OutputError: if `output` cannot be written.
    """
    checkpoint = find_checkpoint(checkpoint)
    config = ConfigDict(load_saved_config(checkpoint))
    cpu = jax.local_devices(backend="cpu")[0]
    return write(load_on_device(checkpoint, build_model(config.model), cpu), config, output)


def write(variables: Mapping[str, Any], config: ConfigDict, output: pathlib.Path) -> int:
    """Writes the weights of a model to a file and returns the number of tensors.

    Args:
      variables: {"params", "batch_stats"}.
      config: the resolved config of the model.
      output: a .pth or .safetensors file.

    Raises:
      OutputError: if `output` cannot be written.
    """
    tensors = to_state_dict(variables, config.model.backbone.get("window"))
    if config.model.backbone.kind.startswith("dinov3"):
        tensors = dinov3.original_names(tensors)
    # mmsegmentation needs these entries of a checkpoint in addition to the weights.
    dataset = evaluated_on(config.data).dataset
    palette = tuple(tuple(color) for color in dataset.palette.tolist())
    torch_writer.write_torch_file(
        output, tensors, {"CLASSES": tuple(dataset.classes), "PALETTE": palette}
    )
    return len(tensors)


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg export-torch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="FILE")
    options = parser.parse_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg export-torch"):
        start.check_platform()
        count = export(options.checkpoint, options.output)
    print(f"{options.checkpoint} -> {options.output}: {count} tensors")


if __name__ == "__main__":
    main()
