"""Compiles the train step or the evaluation of a recipe for devices that may be absent.

Only shapes are needed: nothing is computed, and no array of the model's size is allocated.
"""

import dataclasses
import math
import pathlib
import re
import tempfile
import time

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg.aot import collectives, hardware
from jaxseg.aot.collectives import Collective
from jaxseg.aot.step_profile import Cost, instruction_costs
from jaxseg.data import views
from jaxseg.distributed.sharding import BATCH_SPEC, infer_shardings, with_shardings
from jaxseg.errors import ConfigError
from jaxseg.inference.batcher import compile_forward
from jaxseg.inference.sliding_window import parse_sliding_window
from jaxseg.models.segmentation_model import Variables, build_model, variable_shapes
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import TrainState, init_state
from jaxseg.training.step import jit_train_step

# Without a GPU, XLA cannot tune the tiles of its Triton matrix products.
COMPILER_OPTIONS = {"tpu": {}, "cuda": {"xla_gpu_enable_triton_gemm": False}}
# The TPU compiler has two wordings for running out of HBM. Running out of the chip's small memories
# is another error, which must not match.
OUT_OF_MEMORY = re.compile(
    r"(?:space hbm\. Used |HLO temporaries \()([\d.]+)([KMG])(?: of|\) exceeds available HBM)"
)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program needs on each device.

    Attributes:
      needed_bytes: the sum of the four parts below. If the program did not fit, it is the size in
        the compiler's out-of-memory message, and all other numbers are zero.
      argument_bytes: memory of the arguments: weights, moments and images.
      temporary_bytes: memory of the temporaries.
      output_bytes: memory of the outputs that do not reuse the memory of arguments.
      program_bytes: memory of the executable itself.
      flops: operations of one device as XLA counts them, without those inside the kernels.
      memory_traffic_bytes: memory traffic of one device. XLA counts it for TPUs, without that
        inside the kernels. For GPUs it is the sum over the instructions.
      collectives: the collectives of the program.
      instructions: what the compiler expects of each instruction; empty if it does not say.
      compile_seconds: how long the compilation took.
      compiled: the executable, or None if it does not fit.
    """

    needed_bytes: float
    argument_bytes: float = 0
    temporary_bytes: float = 0
    output_bytes: float = 0
    program_bytes: float = 0
    flops: float = 0
    memory_traffic_bytes: float = 0
    collectives: tuple[Collective, ...] = ()
    instructions: tuple[Cost, ...] = ()
    compile_seconds: float = 0
    compiled: jax.stages.Compiled | None = None


def topology_devices(topology: str, slices: int = 1) -> tuple[hardware.Chip, list[jax.Device]]:
    """Returns the chip and the devices of a topology, which may be absent.

    Args:
      topology: CHIP:SHAPE, such as v5e:4x4, v5p:2x2x4 or h100:8.
      slices: the number of TPU slices of this topology, or the number of GPU nodes.

    Raises:
      ConfigError: for a topology that does not exist, or whose compiler is not installed.
    """
    name, _, shape = topology.partition(":")
    chip = hardware.find_chip(name)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ConfigError(f"--topology {topology}: CHIP:SHAPE is needed, such as v5e:4x4")
    try:
        if chip.platform == "tpu":
            found = topologies.get_topology_desc(topology, "tpu", num_slices=slices)
        else:
            gpus = math.prod(map(int, shape.split("x")))
            found = topologies.get_topology_desc(
                name,
                "cuda",
                topology=f"1x{slices}x{gpus}",
                target_config=hardware.GPU_TARGETS[name],
            )
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--topology {topology}: {reason}. This needs the compiler for it (pip install"
            f" 'jaxseg[{chip.platform}]') and a shape that exists, such as v5e:4x4, v5p:2x2x4,"
            " v6e:16x16, h100:8"
        ) from error
    return chip, list(found.devices)


def trace_train_step(
    config: ConfigDict, mesh: Mesh
) -> tuple[jax.stages.Traced, TrainState, jax.ShapeDtypeStruct]:
    """Traces the train step of a recipe.

    Returns:
      The traced step, and the abstract state and images that it takes.
    """
    model = build_model(config.model, config.deterministic)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    shapes = jax.eval_shape(lambda: init_state(config, model, optimizer))
    shardings = infer_shardings(shapes, config.sharding, mesh)
    state = with_shardings(shapes, shardings)
    hw = (config.batch_size, *config.data.crop_hw)
    batch = {"image": _images((*hw, 3), mesh), "label": _images(hw, mesh, np.int32)}
    step = jit_train_step(config, model, optimizer, shardings, mesh)
    with jax.set_mesh(mesh):
        return step.trace(state, batch), state, batch["image"]


def trace_evaluation(
    config: ConfigDict, mesh: Mesh
) -> tuple[jax.stages.Traced, Variables, jax.ShapeDtypeStruct]:
    """Traces the forward pass of a batch of windows, or of whole images at test size.

    Returns:
      The traced forward pass, and the abstract variables and images that it takes.
    """
    model = build_model(config.model)
    shapes = variable_shapes(model)
    variables = with_shardings(shapes, infer_shardings(shapes, config.sharding, mesh))
    slide = parse_sliding_window(config.eval)
    width, height = config.data.test_scale_wh
    hw = slide.crop_hw if slide else views.plan_views((height, width), config)[0].padded_hw
    images = _images((mesh.size * config.eval.images_per_device, *hw, 3), mesh)
    with jax.set_mesh(mesh):
        return compile_forward(model, None, mesh).trace(variables, images), variables, images


def _images(shape, mesh, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, BATCH_SPEC))


def compile_traced(traced: jax.stages.Traced, devices: int, chip_name: str) -> Program:
    """Compiles a traced function and reports what it needs on each device.

    A program that does not fit into memory is a result, not an error.

    Args:
      traced: the traced function.
      devices: the number of devices in one slice.
      chip_name: the name of the chip, such as "v5e".
    """
    lowered = traced.lower()
    options = COMPILER_OPTIONS[hardware.find_chip(chip_name).platform]
    begun = time.monotonic()
    # `compiled.as_text()` fails for some programs with asynchronous collectives.
    with tempfile.TemporaryDirectory() as dump:
        try:
            compiled = lowered.compile({**options, "xla_dump_to": dump})
        except jax.errors.JaxRuntimeError as error:
            if not (found := OUT_OF_MEMORY.search(str(error))):
                raise
            return Program(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])
        (text,) = pathlib.Path(dump).glob("*after_optimizations.txt")
        sent = tuple(collectives.parse_collectives(text.read_text(), devices))
        # The TPU compiler leaves its estimates in a later text.
        (text,) = [*pathlib.Path(dump).glob("*after_codegen.txt"), text][:1]
        instructions = tuple(instruction_costs(text.read_text(), chip_name))
    memory = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}  # the GPU compiler gives none
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = (
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        outputs,
        memory.generated_code_size_in_bytes,
    )
    return Program(
        sum(parts),
        *parts,
        flops=costs.get("flops", 0),
        memory_traffic_bytes=costs.get("bytes accessed") or sum(x.bytes for x in instructions),
        collectives=sent,
        instructions=instructions,
        compile_seconds=time.monotonic() - begun,
        compiled=compiled,
    )
