"""Bounds the time of an instruction on a GPU by its operations and by the bytes that it moves.

XLA:GPU leaves no estimates in its programs. An instruction takes at least the time of its
operations at the chip's peak, and at least that of its bytes at the bandwidth of the memory. What a
kernel reads from the cache counts as if it came from memory.
"""

import math
import re

from jaxseg.aot import hlo
from jaxseg.aot.hardware import Chip
from jaxseg.aot.hlo import Instruction, Module

# What takes no time, or stands for a computation whose instructions count by themselves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
    *("conditional", "call", "partition-id", "replica-id", "optimization-barrier", "async-done"),
}
GEMM, CONVOLUTION = "__cublas$", "__cudnn$conv"
CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
OUTPUT_LABELS = re.compile(r"dim_labels=\w+_\w+->(\w+)")
WORKSPACE = {"s8", "u8"}  # types of the memory that cuBLAS and cuDNN ask for besides their result


def bound(instruction: Instruction, computation: str, module: Module, chip: Chip) -> float:
    """Returns the least seconds that one run of an instruction can take."""
    moved = bytes_moved(instruction, computation, module) / chip.memory_bandwidth
    return max(moved, operations(instruction, computation, module) / chip.flops)


def bytes_moved(instruction: Instruction, computation: str, module: Module) -> float:
    """Returns the bytes of what an instruction reads and writes.

    Of an operand of which a fusion reads only slices, the slices count. A fusion that replaces a
    slice of an operand in place moves that slice alone.
    """
    if instruction.operation in FREE:
        return 0.0
    shapes = module.shapes(computation)
    operands = [hlo.arrays(shapes[name]) for name in instruction.operands if name in shapes]
    read = [sum(map(hlo.size_bytes, arrays)) for arrays in operands]
    results = hlo.arrays(instruction.shape)
    if instruction.operation == "custom-call":
        results = results[:1] + tuple(r for r in results[1:] if r[0] not in WORKSPACE)
    written = sum(map(hlo.size_bytes, results))
    if instruction.operation == "fusion":
        (fused,) = instruction.called
        read = [
            min(size, _read_of_parameter(index, fused, module)) for index, size in enumerate(read)
        ]
        root = module.computations[fused][-1]
        if root.operation == "dynamic-update-slice":
            written = _size(root.operands[1], fused, module)
    return sum(read) + written


def operations(instruction: Instruction, computation: str, module: Module) -> float:
    """Returns the operations of a matrix product or a convolution of a library, else 0."""
    if instruction.operation != "custom-call":
        return 0.0
    shapes = module.shapes(computation)
    result = hlo.arrays(instruction.shape)[0][1]
    operands = [hlo.arrays(shapes[name])[0][1] for name in instruction.operands[:2]]
    if GEMM in instruction.rest and (found := CONTRACTED.search(instruction.rest)):
        axes = [int(axis) for axis in re.findall(r"\d+", found[1])]
        return 2.0 * math.prod(result) * math.prod(operands[0][axis] for axis in axes)
    if CONVOLUTION in instruction.rest and (found := OUTPUT_LABELS.search(instruction.rest)):
        # Forward: (input, kernel) -> output. The gradients have the same three arrays in other
        # places, and as many operations.
        output_labels = found[1]
        if "convBackwardFilter" in instruction.rest:
            kernel, output = result, operands[1]
        elif "convBackwardInput" in instruction.rest:
            kernel, output = operands[1], operands[0]
        else:
            kernel, output = operands[1], result
        features = output[output_labels.index("f")]
        return 2.0 * math.prod(output) * math.prod(kernel) / features
    return 0.0


def _read_of_parameter(index, fused, module):
    """Returns the bytes that a fusion reads of its operand `index`, or infinity for all of it."""
    instructions = module.computations[fused]
    (name,) = (
        step.name
        for step in instructions
        if step.operation == "parameter" and step.literal == str(index)
    )
    total = 0.0
    for step in instructions:
        if name not in step.operands:
            continue
        if step.operation in ("dynamic-slice", "slice", "gather") and step.operands[0] == name:
            total += sum(map(hlo.size_bytes, hlo.arrays(step.shape)))
        elif not (step.operation == "dynamic-update-slice" and step.operands[0] == name):
            return math.inf
    return total


def _size(name, computation, module):
    return sum(map(hlo.size_bytes, hlo.arrays(module.shapes(computation)[name])))
