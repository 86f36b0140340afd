"""MFU (model FLOPs utilization): the share of the devices' peak that the model's operations use.

    MFU = operations of the model / (seconds * peak operations per second of all devices)

The operations are those that the model itself needs (`jaxseg.models.flops`), however it is
computed: what remat computes again does not count. The peak is that of the data sheet
(`jaxseg.aot.hardware`). PaLM, appendix B (arXiv:2204.02311).
"""

from collections.abc import Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg.aot import hardware
from jaxseg.models.flops import count_flops
from jaxseg.models.segmentation_model import build_model, computation_dtype
from jaxseg.parameter_paths import begins_with
from jaxseg.training.freezing import frozen_patterns

# A multiply-accumulate is two operations. The backward pass takes twice those of the forward pass.
OPERATIONS_PER_COUNTED = {"train": 6, "eval": 2}


def model_flops(config: ConfigDict, batch_shape: Sequence[int], what: str) -> float:
    """Returns the operations that the model itself needs for a batch.

    Only shapes are evaluated. The auxiliary head, which only training has, is not counted. Of
    frozen parts, the forward pass alone counts.

    Args:
      config: the recipe.
      batch_shape: the shape of the images, [b, h, w, 3].
      what: "train" or "eval".
    """
    batch, height, width, _ = batch_shape
    counts = count_flops(build_model(config.model), (height, width))
    frozen = frozen_patterns(config.optim) if what == "train" else ()

    def operations(path):
        forward_only = begins_with("".join(f"{name}/" for name in path), frozen)
        return OPERATIONS_PER_COUNTED["eval" if forward_only else what]

    return batch * sum(operations(path) * count for path, count in counts.items())


def peak_flops(config: ConfigDict, mesh: Mesh) -> float | None:
    """Returns the operations per second of all devices of a mesh, in the type of the model.

    Returns:
      The peak by the data sheet, or None if the device or the type is not listed there.
    """
    chip = hardware.chip_of_device(mesh.devices.flat[0].device_kind)
    peak = chip and chip.peak_flops(computation_dtype(config.model))
    return peak and peak * mesh.size


def seconds_at_peak(
    config: ConfigDict, mesh: Mesh, batch_shape: Sequence[int], what: str
) -> float | None:
    """Returns the least time that a batch could take, or None if the peak is not known.

    MFU is this time over the measured one. The arguments are those of `model_flops`.
    """
    peak = peak_flops(config, mesh)
    return peak and model_flops(config, batch_shape, what) / peak
