"""Measures the train step or the forward pass of a recipe, at one batch or at the largest."""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg.aot.utilization import model_flops, peak_flops
from jaxseg.bench.measurement import Measurement
from jaxseg.bench.program import compile_program
from jaxseg.bench.timing import time_calls
from jaxseg.distributed.sharding import check_batch, make_mesh
from jaxseg.errors import ConfigError, first_line
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models import kernels
from jaxseg.models.segmentation_model import computation_dtype
from jaxseg.reporting.manifest import device_memory, versions
from pallas_kernels import choice
from pallas_kernels.gpu import block_sizes

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
FIRST_BATCH = 8  # images a device, where the search for the largest batch begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured, and how.

    Attributes:
      what: "train" or "infer".
      config: the resolved config.
      recipe: its name, for the result.
      overrides: the settings that differ from the recipe, for the result.
      warmup: steps before the first that is timed.
      steps: steps that are timed.
    """

    what: str
    config: ConfigDict
    recipe: str
    overrides: Sequence[str] = ()
    warmup: int = 3
    steps: int = 20


def measure_step(subject: Subject, images_per_device: int | None = None) -> Measurement:
    """Measures one batch.

    Args:
      subject: what is measured.
      images_per_device: the size of the batch; by default that of the recipe.

    Raises:
      ConfigError: for sizes, kernels, a mesh or a batch that do not suit the model or the devices,
        and for a batch that does not fit into their memory.
    """
    try:
        return _measure(subject, images_per_device)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise ConfigError(
            f"{subject.what} of {subject.recipe} does not fit into the memory of the devices"
            f" ({first_line(error)}). Choose fewer images a device with --batch N, let --batch 0"
            " find how many fit, or take a setting that docs/guides/compile.md suggests"
        ) from error


def measure_largest(subject: Subject) -> Measurement:
    """Doubles the batch until it fails, and returns the measurement of the largest that ran.

    The error that ended the search is part of the result, as `limit`.

    Raises:
      ConfigError: on a CPU, whose memory JAX does not limit, and as `measure_step` does.
    """
    if jax.default_backend() == "cpu":
        raise ConfigError(
            "--batch 0 looks for the largest batch that fits into a GPU or TPU, and this is a CPU,"
            " whose memory has no such limit; choose --batch N"
        )
    found, batch = measure_step(subject, FIRST_BATCH), FIRST_BATCH
    while True:
        batch *= 2
        try:
            found = _measure(subject, batch)
        except jax.errors.JaxRuntimeError as error:
            return dataclasses.replace(found, limit=f"{batch} a device: {first_line(error)}")


def _measure(subject, images_per_device):
    what, config = subject.what, subject.config.copy_and_resolve_references()
    mesh = make_mesh(config.mesh)
    _set_batch(config, what, images_per_device, mesh)
    kernels.check_kernels(config.model, mesh.devices.flat[0].platform)
    check_image_sizes(config)
    program = compile_program(config, what, mesh)
    seconds = time_calls(program.run, warmup=subject.warmup, steps=subject.steps)
    batch, height, width, _ = program.batch_shape
    operations = model_flops(config, program.batch_shape, "train" if what == "train" else "eval")
    peak, memory = peak_flops(config, mesh), device_memory()
    device = mesh.devices.flat[0]
    return Measurement(
        what=what,
        recipe=subject.recipe,
        overrides=list(subject.overrides),
        device=device.device_kind,
        devices=mesh.size,
        batch=batch,
        dtype=computation_dtype(config.model),
        image_hw=(height, width),
        images_per_second=batch / seconds.p50,
        seconds=seconds,
        compile_seconds=program.compile_seconds,
        compiled_before=program.compiled_before,
        peak_memory_bytes=memory and memory[0],
        flops_per_image=operations / batch,
        mfu=peak and operations / (seconds.p50 * peak),
        kernels=kernels.describe_kernels(config.model),
        kernels_refused=choice.refusals(),
        tuned=device.device_kind in block_sizes.TUNED,
        versions=versions(),
    )


def _set_batch(config: ConfigDict, what: str, images_per_device: int | None, mesh: Mesh):
    """Sets the batch in the config, and checks it."""
    if what == "infer":
        config.eval.images_per_device = images_per_device or config.eval.images_per_device
        return
    if images_per_device:
        config.batch_size = images_per_device * mesh.size
    check_batch(config.batch_size, config.optim.accumulation, mesh)
