"""Compares a model with numbers recorded from the PyTorch original.

jaxseg verify --config configs/cityscapes.py:VARIANT --reference FILE.npz \\
    [--checkpoint FILE.pth|RUN]

The program prints the largest error of every recorded tensor and how far the class maps agree. It
exits with status 1 if an error exceeds the tolerance. Without --checkpoint, the weights are made
from the tensors' names, as for the recordings that come with jaxseg (tests/reference).

A recording of your own weights is an .npz with these entries:

- `input_shape` [n, 3, h, w] and `input_seed` of the standard normal input;
- for `backbone/0` to `backbone/3`, `logits` and `output` (logits at input size): `shape`, `absmax`,
  and `values` (or in float64, `values_f64`) at `index` of the flattened NCHW array;
- for `argmax`: the class `values` and the `margin` over the second best class, at `index` of the
  pixels;
- optionally, in the form of the logits: `auxiliary` (logits of the auxiliary head),
  `class_logits/I` [n, queries, classes + 1] and `mask_logits/I` [n, queries, h, w] (prediction I of
  Mask2Former).
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from converters import dinov3, recording, rules, torch_weights
from converters.fill import fill
from converters.pretrained import PERIODS
from converters.recording import Recording
from jaxseg import configure_cpu, parameter_paths
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device
from jaxseg.config import load_config
from jaxseg.distributed import start
from jaxseg.errors import CheckpointError, exit_with_message
from jaxseg.models.heads.mask2former_head import MaskPredictions
from jaxseg.models.segmentation_model import (
    SegmentationModel,
    Variables,
    build_model,
    variable_shapes,
)
from jaxseg.ops.resize import resize_bilinear
from jaxseg.ops.rotary import rotary_periods

# Relative to the largest value of each tensor. The original's own float32 differs from its float64
# by 3e-5 (features) and 1.5e-5 (logits) absolute, which is a tenth of this.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Says how far a model agrees with a recording.

    Attributes:
      errors: by tensor, the largest absolute error and its share of the largest recorded value.
      agreement: the share of the recorded pixels that have the same class.
      clear: the share of the recorded pixels whose margin exceeds the tolerance, so that the class
        is certain.
      clear_agreement: the share of these clear pixels that have the same class; 1 if the model is
        right.
    """

    errors: dict[str, tuple[float, float]]
    agreement: float
    clear: float
    clear_agreement: float

    def within(self, tolerance: float) -> bool:
        """Returns whether all errors are within the tolerance and all certain classes agree."""
        worst = max(relative for _, relative in self.errors.values())
        return worst <= tolerance and self.clear_agreement == 1  # False for NaN

    def table(self) -> str:
        lines = [f"{'':<16}{'absolute':>12}{'relative':>12}"]
        lines += [f"{n:<16}{a:>12.1e}{r:>12.1e}" for n, (a, r) in self.errors.items()]
        return "\n".join(
            [
                *lines,
                f"class maps      {self.agreement:.2%} of the pixels agree;"
                f" {self.clear_agreement:.2%} of the {self.clear:.2%} that are clear",
            ]
        )


def filled_state_dict(config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns the state dict of a model's original, with the weights that `fill` makes."""
    wanted = parameter_paths.shapes(variable_shapes(build_model(config.model)))
    shapes = {rules.to_name(p): rules.channels_first_shape(s, p) for p, s in wanted.items()}
    backbone = config.model.backbone
    if not backbone.kind.startswith("dinov3"):
        return {name: fill(name, shape) for name, shape in shapes.items()}
    adapted = backbone.kind == "dinov3_adapter"
    names = {name: dinov3.original_name(name, adapted) for name in shapes}
    tensors = {name: fill(names[name], shape) for name, shape in shapes.items()}
    tensors[PERIODS] = rotary_periods(backbone.embed_dim // backbone.num_heads)
    return tensors


def compare(
    config: ConfigDict,
    variables: Variables,
    recorded: Recording,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Runs `config.model` on the recorded images and compares its outputs with the recording.

    Args:
      config: the config of the model.
      variables: {"params", "batch_stats"} of the model.
      recorded: the images and the original's outputs.
      tolerance: relative to the largest value of each tensor.

    Raises:
      CheckpointError: if a recorded tensor has another shape than the model's, or the model lacks
        it.
    """
    outputs = run(build_model(config.model), variables, recorded.images)
    errors = {}
    for name, samples in recorded.tensors.items():
        if name not in outputs:
            raise CheckpointError(f"{name} was recorded, but {config.variant} has no such output")
        value = np.asarray(outputs[name])
        if value.shape != samples.shape:
            raise CheckpointError(f"{name}: recorded as {samples.shape}, but here {value.shape}")
        error = float(np.max(np.abs(value.ravel()[samples.index] - samples.values)))
        errors[name] = error, error / samples.largest

    classes = np.argmax(np.asarray(outputs["output"]), axis=1).ravel()
    same = classes[recorded.pixels] == recorded.classes
    clear = recorded.margins > tolerance * recorded.tensors["output"].largest
    return Comparison(errors, same.mean(), clear.mean(), same[clear].mean())


def run(
    model: SegmentationModel, variables: Variables, images: Float[np.ndarray, "b h w 3"]
) -> dict[str, jax.Array]:
    """Computes features and logits, channels first, under the names of a `Recording`."""

    @jax.jit
    def run(variables, images):
        features, predicted, auxiliary = model.apply(variables, images, method=_parts)
        queries = {}
        if isinstance(predicted, MaskPredictions):
            queries |= {f"class_logits/{i}": x for i, x in enumerate(predicted.class_logits)}
            queries |= {f"mask_logits/{i}": x for i, x in enumerate(predicted.mask_logits)}
            output = model.decode_head.semantic(predicted, images.shape[1:3])
            predicted = predicted.semantic()
        else:
            output = predicted
        maps = {f"backbone/{i}": feature for i, feature in enumerate(features)}
        output = resize_bilinear(output.astype(jnp.float32), images.shape[1:3])
        maps |= {"logits": predicted, "output": output}
        if auxiliary is not None:
            maps["auxiliary"] = auxiliary
        return queries | {name: jnp.moveaxis(x, -1, 1) for name, x in maps.items()}

    return run(variables, images)


def _parts(model, images):
    features = model.backbone(images)
    auxiliary = model.auxiliary_head
    return (
        features,
        model.decode_head(features, train=False),
        auxiliary and auxiliary(features, train=False),
    )


def load_weights(path: pathlib.Path | None, config: ConfigDict) -> Any:
    """Loads variables of `config.model`, or makes them from the tensors' names.

    Args:
      path: a PyTorch file, or the directory of a jaxseg run; None to make the variables.
      config: the config of the model.

    Raises:
      CheckpointError: if the weights cannot be read, do not fit, or are those of a backbone alone.
    """
    if path is None:
        return torch_weights.from_state_dict(filled_state_dict(config), config)
    model = build_model(config.model)
    if path.is_dir():
        return load_on_device(find_checkpoint(path), model)
    shapes = parameter_paths.shapes(variable_shapes(model))
    weights = torch_weights.read_weights(path, shapes, model=config.variant)
    if weights.plan.fresh:
        raise CheckpointError(f"{path} holds only a backbone; verify needs a whole segmentor")
    return parameter_paths.nested({name: np.array(array) for name, array in weights.arrays.items()})


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg verify",
        description=__doc__,
        epilog="Settings of the config can be changed: --config.KEY=VALUE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE:VARIANT")
    parser.add_argument("--reference", required=True, type=pathlib.Path, metavar="FILE.npz")
    parser.add_argument("--checkpoint", type=pathlib.Path, metavar="FILE|RUN")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="relative, default 1e-4")
    options, overrides = parser.parse_known_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg verify"):
        start.use_compile_cache()
        start.check_platform()
        # The recordings are in float32. The error of bfloat16 is another question.
        config = load_config(options.config, ["--config.model.dtype=float32", *overrides])
        recorded = recording.read_recording(options.reference)
        variables = load_weights(options.checkpoint, config)
        comparison = compare(config, variables, recorded, options.tolerance)
    print(comparison.table())
    if not comparison.within(options.tolerance):
        sys.exit(f"beyond the tolerance of {options.tolerance:g}")
    print(f"within the tolerance of {options.tolerance:g}")


if __name__ == "__main__":
    main()
