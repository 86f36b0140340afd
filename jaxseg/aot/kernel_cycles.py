"""Knows the cycles of the Pallas kernels on TPUs, which the compiler does not estimate.

`kernel_cycles.json` holds the instruction bundles that each kernel runs at the sizes of the
published models, counted in the compiler's listing. A bundle takes a cycle. Waiting for memory is
not included. Where models call a kernel with arrays of one size for different maps, the largest
count is in the table. `benchmarks/tpu_static.py --table` writes the file.
"""

import functools
import json
import pathlib
import re

from jaxseg.aot import hlo
from jaxseg.aot.hlo import Instruction

TABLE = pathlib.Path(__file__).with_name("kernel_cycles.json")


def kernel_cycles(instruction: Instruction, chip: str) -> int | None:
    """Returns the cycles of one run of a kernel, or None if its size is not in the table.

    The first axis of all operands runs over images, or over the heads of all images. The work grows
    in proportion to it.

    Args:
      instruction: the custom call of the kernel.
      chip: the name of the chip, such as "v5e".
    """
    found = kernel_key(instruction)
    if found is None or found[0] not in _table().get(chip, {}):
        return None
    key, leading = found
    return round(_table()[chip][key] * leading)


def kernel_key(instruction: Instruction) -> tuple[str, int] | None:
    """Returns the entry of a kernel in the table, and the length of the first axis of its operands.

    It returns None for a kernel whose first operand has no axes.

    The entry is the name of the kernel with the shapes of its operands without their first axis.
    """
    name = re.sub(r"\.\d+$", "", instruction.name)
    _, _, layouts = instruction.rest.partition("operand_layout_constraints={")
    operands = hlo.arrays(layouts.partition(", metadata=")[0])
    if not (operands and operands[0][1]):
        return None
    shapes = (f"{dtype}{list(dimensions[1:])}".replace(" ", "") for dtype, dimensions in operands)
    return " ".join([name, *shapes]), operands[0][1][0]


@functools.cache
def _table() -> dict[str, dict[str, float]]:
    return json.loads(TABLE.read_text())
