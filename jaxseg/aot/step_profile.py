"""Tells where the time of a program goes, instruction by instruction, before it runs.

The TPU compiler leaves its own estimate beside each instruction, as `estimated_cycles`. It chooses
fusions and layouts by it. It is not a measurement, but the same program always gets the same
figure, so two versions of a program can be compared without the device. The few instructions
without an estimate count by their bytes, but for copies that run beside the computation, such as
those into the chip's own memory ahead of use: they count nothing. The cycles of a Pallas kernel are
not known to the compiler; `jaxseg.aot.kernel_cycles` has them. XLA:GPU leaves no estimates;
`jaxseg.aot.roofline` bounds the time of its instructions.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jaxseg.aot import hlo, roofline
from jaxseg.aot.collectives import KINDS as COLLECTIVES
from jaxseg.aot.hardware import find_chip
from jaxseg.aot.hlo import Instruction, Module
from jaxseg.aot.kernel_cycles import kernel_cycles

MATRIX, COPY, MOVE, REDUCE, ELEMENTWISE, KERNEL, COLLECTIVE = KINDS = (
    "matrix products",
    "copies and transposes",
    "pads, slices and casts",
    "reductions",
    "elementwise",
    "kernels",
    "collectives",
)
DIRECTIONS = ("forward", "backward", "recomputed", "outside")
OUTSIDE = "outside of modules"

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
UNKNOWN = 10**12  # the compiler writes 2^63 - 1 where it has no estimate
OP_NAME = re.compile(r'op_name="([^"]*)"')
KERNEL_CALL = 'custom_call_target="tpu_custom_call"'
NO_OPERATION = re.compile('custom_call_target="(AllocateBuffer|ConcatBitcast)"')
TRITON_CALL = 'custom_call_target="__gpu$xla.gpu.triton"'

_PRODUCTS = {"convolution", "dot"}
_COPIES = {"copy", "transpose"}
_ASYNCHRONOUS = {"copy-start", "copy-done", "async-start", "async-update", "async-done"}
_REDUCTIONS = {"reduce", "reduce-window", "sort", "scatter", "select-and-scatter", "topk"}
_MOVES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "reshape", "broadcast"),
    *("pad", "slice", "concatenate", "dynamic-slice", "dynamic-update-slice", "reverse", "iota"),
    *("convert", "bitcast-convert"),
}
# Parts of an op_name that JAX's transformations and control flow add, not modules.
_NO_MODULE = re.compile(
    r".*[(<>,].*|cond|while|body|body_pred|branch_\d+_fun|closed_call|checkpoint|rematted_computation"
    r"|shard_map|custom_(jvp|vjp)_call|core_call|pallas_call|\w+\.\w+|"
)
_TRANSFORMED = re.compile(r"(?:transpose\()?(?:jvp|vmap)\((\w*)\)+")
_MODEL = "SegmentationModel"


@dataclass(frozen=True)
class Cost:
    """What the compiler expects of one instruction in one run of the program.

    Attributes:
      instruction: its name in the program's text.
      shape: the shapes of its results, such as "f32[2,512,512]".
      module: the path of the model's module, such as "backbone/levels_0/blocks_1/dcn".
      direction: one of `DIRECTIONS`.
      kind: one of `KINDS`.
      times: how often it runs.
      seconds: the time of all its runs, or None if it is not known.
      bytes: what all its runs read and write, on a GPU; 0 on a TPU, where XLA counts it.
    """

    instruction: str
    shape: str
    module: str
    direction: str
    kind: str
    times: int
    seconds: float | None
    bytes: float = 0.0


def instruction_costs(text: str, chip_name: str) -> list[Cost]:
    """Returns the cost of every instruction that runs by itself.

    Those inside a fusion are part of it. On a TPU, asynchronous copies are left out. The time of
    collectives is not known: it depends on the links.

    Args:
      text: the text of a TPU program after code generation, or of a GPU program after
        optimization.
      chip_name: the name of the chip, such as "v5e".
    """
    module, chip = hlo.parse(text), find_chip(chip_name)
    on_gpu = chip.platform == "cuda"
    free = roofline.FREE if on_gpu else roofline.FREE | _ASYNCHRONOUS
    within = {"fusion"} if on_gpu else {"fusion", "async-start"}
    counts = module.run_counts(lambda instruction, _: instruction.operation not in within)
    found = []
    for computation, times in counts.items():
        for instruction in module.computations[computation]:
            if instruction.operation in free or NO_OPERATION.search(instruction.rest):
                continue
            kind, moved = _kind(instruction, module), 0.0
            if kind == COLLECTIVE:
                seconds = None
            elif on_gpu:
                seconds = roofline.bound(instruction, computation, module, chip)
                moved = roofline.bytes_moved(instruction, computation, module)
            elif kind == KERNEL:
                cycles = kernel_cycles(instruction, chip_name)
                seconds = None if cycles is None else cycles / chip.clock
            elif estimate := CYCLES.search(instruction.rest):
                cycles = int(estimate[1])
                seconds = cycles / chip.clock if cycles < UNKNOWN else None
            else:  # reshapes that move data, and scalars
                size = roofline.bytes_moved(instruction, computation, module)
                seconds = size / chip.memory_bandwidth
            name = OP_NAME.search(instruction.rest)
            path, direction = module_and_direction(name[1] if name else "")
            shape = ", ".join(
                f"{dtype}[{','.join(map(str, dimensions))}]"
                for dtype, dimensions in hlo.arrays(instruction.shape)
            )
            seconds = None if seconds is None else seconds * times
            place = (path, direction, kind, times)
            found.append(Cost(instruction.name, shape, *place, seconds, moved * times))
    return found


def module_and_direction(op_name: str) -> tuple[str, str]:
    """Returns the module and the direction of an instruction from the name that JAX gave it.

    >>> module_and_direction("jit(train_step)/transpose(jvp(SegmentationModel))/backbone/mlp/dot")
    ('backbone/mlp', 'backward')
    """
    name = op_name.partition(";")[0]
    if "rematted_computation" in name:
        direction = "recomputed"
    elif "transpose(" in name:
        direction = "backward"
    else:
        direction = "forward" if "jvp(" in name else "outside"
    path = []
    for part in name.split("/")[:-1]:  # the last part is the operation
        transformed = _TRANSFORMED.fullmatch(part)
        part = transformed[1] if transformed else part
        if part in path[:1]:
            break  # an instruction that XLA merged from several modules: the first one has it
        if not _NO_MODULE.fullmatch(part) and part != _MODEL:
            path.append(part)
    return "/".join(path) or OUTSIDE, direction


def totals(costs: Iterable[Cost], key: Callable[[Cost], str]) -> dict[str, float]:
    """Returns the sum of the known seconds for each key, the largest first."""
    found = defaultdict(float)
    for cost in costs:
        found[key(cost)] += cost.seconds or 0.0
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _kind(instruction: Instruction, module: Module) -> str:
    operation = instruction.operation.removesuffix("-start").removesuffix("-done")
    if operation in COLLECTIVES:
        return COLLECTIVE
    if operation == "custom-call":
        if KERNEL_CALL in instruction.rest or TRITON_CALL in instruction.rest:
            return KERNEL
        if roofline.GEMM in instruction.rest or roofline.CONVOLUTION in instruction.rest:
            return MATRIX
    operations = _operations(instruction, module)
    if operations & _PRODUCTS:
        return MATRIX
    if operations & _COPIES and operations <= _COPIES | _MOVES:
        return COPY
    if operations <= _MOVES:
        return MOVE
    return REDUCE if operations & _REDUCTIONS else ELEMENTWISE


def _operations(instruction: Instruction, module: Module) -> set[str]:
    """Returns the operations of an instruction, and of those inside it if it is a fusion."""
    if instruction.operation != "fusion":
        return {instruction.operation}
    return {
        operation
        for computation in instruction.called
        for inner in module.computations[computation]
        for operation in _operations(inner, module)
    }
