"""Reads from a compiled program what the devices send to each other."""

import math
import re
from dataclasses import dataclass

from jaxseg.aot import hlo

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "send")

# An asynchronous collective appears three times in the HLO: start, fused computation, done. Count
# only the start.
BEGUN_BEFORE = re.compile(r"async-collective-done|async_collective_fusion")
# {{0,1},{2,3}} or [2,2]<=[4] or mesh['axis_0'=2,'axis_1'=2] {'axis_1'}
GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]<=|mesh\[([^]]*)\] \{([^}]*)\})"
)
SLICES = re.compile(r'megascale_target="\{([\d,]*)\}.*megascale_transfer_type="ALL_REDUCE"')


@dataclass(frozen=True)
class Collective:
    """One collective of a compiled program.

    Attributes:
      kind: one of `KINDS`. "send" is an all-reduce over the network between slices.
      shapes: (dtype, dimensions) of each array that a device contributes.
      devices: the number of devices in one group; for "send", the number of slices.
      times: how often it runs, counting the iterations of the loops around it.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    devices: int
    times: int

    @property
    def sent_bytes(self) -> float:
        """Returns the number of bytes that one device sends, assuming ring algorithms."""
        given = self.times * sum(hlo.size_bytes(shape) for shape in self.shapes)
        n = self.devices
        return (
            given
            * {
                "all-gather": n - 1,
                "all-reduce": 2 * (n - 1) / n,
                "all-to-all": (n - 1) / n,
                "reduce-scatter": (n - 1) / n,
                "collective-permute": 1,
                "send": 2 * (n - 1) / n,
            }[self.kind]
        )


def parse_collectives(text: str, devices: int) -> list[Collective]:
    """Returns all collectives of a compiled program.

    Args:
      text: the HLO of the program after partitioning.
      devices: the number of devices in one slice.
    """
    module = hlo.parse(text)
    counts = module.run_counts(
        lambda instruction, callee: (
            not BEGUN_BEFORE.match(instruction.name) and not BEGUN_BEFORE.match(callee)
        )
    )
    return [
        Collective(kind, shapes, groups or devices, counts[name])
        for name, instructions in module.computations.items()
        if name in counts
        for kind, shapes, groups in _collectives(name, instructions)
    ]


def _collectives(computation, instructions):
    shapes = {instruction.name: hlo.arrays(instruction.shape) for instruction in instructions}
    for instruction in instructions:
        kind = instruction.operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        if computation.startswith("all-reduce-scatter"):  # each device keeps one shard of the sum
            kind = "reduce-scatter"
        given = tuple(array for name in instruction.operands for array in shapes[name])
        slices = _slices if kind == "send" else _group_size
        yield kind, given, slices(instruction.rest)


def _slices(attributes: str) -> int:
    """Returns how many slices take part in the all-reduce, or 2 for a send to one other slice."""
    match = SLICES.search(attributes)
    return match[1].count(",") + 1 if match else 2


def _group_size(attributes: str) -> int | None:
    """Returns the number of devices in one group, or None for all devices."""
    if not (match := GROUPS.search(attributes)):
        return None
    listed, size, mesh, axes = match.groups()
    if listed:
        return listed.count(",") + 1
    if size:
        return int(size)
    sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
    return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", axes))
