"""Converts a PyTorch checkpoint to a jaxseg checkpoint, without PyTorch.

jaxseg convert --checkpoint FILE --config configs/cityscapes.py:VARIANT --output DIR
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from converters.conversion_plan import Plan
from converters.torch_weights import read_weights
from jaxseg import configure_cpu, parameter_paths
from jaxseg.atomic_files import write_text
from jaxseg.checkpoints.weights import save_weights
from jaxseg.config import load_config
from jaxseg.data.source import evaluated_on
from jaxseg.distributed import start
from jaxseg.errors import ConfigError, exit_with_message
from jaxseg.models.segmentation_model import ANY_HW, build_model, init_variables, variable_shapes
from jaxseg.zoo import catalogue


def initial_values(config: ConfigDict, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Computes the initial values of some variables of `config.model`, by path.

    The other variables are not computed.

    Args:
      config: the config of the model, with its seed.
      wanted: the paths of the variables.
    """
    wanted = set(wanted)
    model = build_model(config.model)

    @jax.jit
    def draw():
        variables = init_variables(model, jax.random.key(config.seed), ANY_HW)
        return {
            path: leaf
            for path, leaf in parameter_paths.by_path(variables).items()
            if path in wanted
        }

    return {path: np.asarray(value) for path, value in draw().items()}


class Conversion(NamedTuple):
    """Says what became of a PyTorch file.

    Attributes:
      plan: what became of every tensor.
      summary: the same in a few lines for the user.
    """

    plan: Plan
    summary: str


def convert(
    path: pathlib.Path,
    config: ConfigDict,
    output: pathlib.Path,
    dtype: str = "float32",
    ema: bool = False,
    backbone: pathlib.Path | None = None,
) -> Conversion:
    """Converts a PyTorch file to a checkpoint in `output`.

    The function also writes `conversion.json`, which says what became of every tensor.

    Args:
      path: the PyTorch file.
      config: the config of the model.
      output: a directory without checkpoints.
      dtype: the type of the parameters, "float32" or "bfloat16".
      ema: whether to take the moving average of the weights.
      backbone: the file of the backbone, if `path` holds the other parts alone.

    Raises:
      CheckpointError: if the file cannot be read or does not fit, or `output` is taken.
      OutputError: if the checkpoint cannot be written.
    """
    wanted = parameter_paths.shapes(variable_shapes(build_model(config.model)))
    window = config.model.backbone.get("window")
    weights = read_weights(
        path, wanted, model=config.variant, window=window, prefer_ema=ema, backbone=backbone
    )
    arrays = {}
    initial = initial_values(config, weights.plan.initial)
    for name, values in (weights.arrays | initial).items():
        # Statistics stay in float32, as does what is normalized by them.
        kept = np.float32 if name.startswith("batch_stats/") else jax.numpy.dtype(dtype)
        arrays[name] = np.asarray(values, dtype=kept)  # a view of the file where possible
    save_weights(output, parameter_paths.nested(arrays), config.to_dict())

    plan = weights.plan
    sources = [str(file) for file in (path, backbone) if file]
    record = {"source": ", ".join(sources), "beside": weights.beside, **dataclasses.asdict(plan)}
    write_text(output / "conversion.json", json.dumps(record, indent=1) + "\n")
    parameters = sum(x.size for name, x in arrays.items() if name.startswith("params/"))
    size = f"{parameters / 1e6:.2f} M parameters in {dtype}"
    lines = [f"{path}\n  -> {config.variant} in {output}: {size}", plan.table()]
    if weights.taken_off:
        lines.append(f"  taken off the names: {', '.join(weights.taken_off)}")
    if weights.beside:
        lines.append(f"  left in the file: {', '.join(weights.beside)}")
    classes = len(evaluated_on(config.data).dataset.classes)
    if weights.classes and weights.classes != str(classes):
        lines.append(
            f"warning: the file has {weights.classes} classes, {config.variant} has {classes}"
        )
    if plan.fresh:
        lines.append(f"train it before use, starting from --config.init={output}")
    lines.append(f"what became of every tensor: {output / 'conversion.json'}")
    return Conversion(plan, "\n".join(lines))


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg convert",
        description=__doc__,
        epilog="Settings of the config can be changed: --config.KEY=VALUE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        help=".pth, .pth.tar, .safetensors, .zip of one, or *.index.json of several",
    )
    source.add_argument("--zoo", metavar="NAME", help="a published model: jaxseg zoo")
    parser.add_argument(
        "--backbone",
        type=pathlib.Path,
        metavar="FILE",
        help="the backbone, if the checkpoint holds the other parts alone",
    )
    parser.add_argument("--config", metavar="FILE:VARIANT", help="default with --zoo: the model's")
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="a directory without checkpoints"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    options, overrides = parser.parse_known_args(arguments)
    configure_cpu()
    logging.set_verbosity(logging.ERROR)  # orbax warns about what is intended here
    with exit_with_message("jaxseg convert"):
        start.use_compile_cache()
        start.check_platform()
        config = options.config or (options.zoo and catalogue.find_model(options.zoo).config)
        if not config:
            raise ConfigError("--config FILE:VARIANT is needed to say which model the file is of")
        config = load_config(config, overrides)
        path, backbone = options.checkpoint, options.backbone
        if options.zoo:
            path, backbone = (
                catalogue.fetch_weights(options.zoo),
                catalogue.fetch_backbone(options.zoo),
            )
        done = convert(path, config, options.output, options.dtype, options.ema, backbone)
        print(done.summary)


if __name__ == "__main__":
    main()
