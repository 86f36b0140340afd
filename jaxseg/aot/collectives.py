"""Reads from the HLO of a compiled program what the devices send to each other.

The text is XLA's HLO after partitioning, as in `compiled.as_text()`. It is the program of one
device.
"""

import collections
import math
import re
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "send")

# %name = SHAPE operation(operands), attributes
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .* )?\{$")
CALLED = re.compile(r"(?:calls|body|branch_computations)=(%?[\w.-]+|\{[^}]*\})")
# An asynchronous collective appears three times in the HLO: start, fused computation, done. Count
# only the start.
BEGUN_BEFORE = re.compile(r"async-collective-done|async_collective_fusion")
CONDITION = re.compile(r"condition=%?([\w.-]+)")
GET, INDEX = "get-tuple-element", re.compile(r"index=(\d+)")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
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
        given = self.times * sum(size_bytes(shape) for shape in self.shapes)
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


def size_bytes(shape: tuple[str, tuple[int, ...]]) -> float:
    """Returns the size in bytes of an array of this (dtype, dimensions)."""
    kind, dimensions = shape
    found = re.search(r"\d+", kind)
    bits = int(found[0]) if found else 8  # pred
    return math.prod(dimensions) * bits / 8


def parse_collectives(text: str, devices: int) -> list[Collective]:
    """Returns all collectives of a compiled program.

    Args:
      text: the HLO of the program after partitioning.
      devices: the number of devices in one slice.
    """
    computations, entry = _computations(text)
    times = collections.Counter()

    def visit(name, count):
        times[name] += count
        for instruction, _, operation, rest in computations[name]:
            trips = _trips(rest, computations) if operation == "while" else 1
            for callee in _called(rest):
                if not BEGUN_BEFORE.match(instruction) and not BEGUN_BEFORE.match(callee):
                    visit(callee, count * trips)

    visit(entry, 1)
    return [
        Collective(kind, shapes, groups or devices, times[name])
        for name, instructions in computations.items()
        if times[name]
        for kind, shapes, groups in _collectives(name, instructions)
    ]


def _computations(text: str):
    """Returns the computations of an HLO text and the name of the entry computation.

    Each computation is a list of (instruction, shape, operation, rest).
    """
    found, entry, current = {}, None, None
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = found[match[2]] = []
            entry = match[2] if match[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.append(match.groups())
    return found, entry


def _called(rest: str) -> list[str]:
    return [name for called in CALLED.findall(rest) for name in re.findall(r"[\w.-]+", called)]


def _trips(rest: str, computations) -> int:
    """Returns the number of iterations of a loop.

    The loop counts from 0 to the only constant in its condition, in steps of what its body adds.
    """
    condition = computations[CONDITION.findall(rest)[0]]
    limits = [int(_operands(rest)) for *_, operation, rest in condition if operation == "constant"]
    if len(limits) != 1:
        return 1
    counters = [INDEX.findall(rest)[0] for *_, name, rest in condition if name == GET]
    body = {name: (operation, rest) for name, _, operation, rest in computations[_called(rest)[0]]}
    step = _step(int(counters[0]), body) if len(counters) == 1 else 1
    return limits[0] // step


def _step(counter: int, body) -> int:
    """Returns what the body of a loop adds to element `counter` of its carry."""
    *_, (_, carried) = body.values()  # the last instruction is the tuple of the carry
    operation, rest = body[_names(carried)[counter]]
    if operation != "add":
        return 1  # `lax.scan` counts in steps of one
    constants = [body[name][1] for name in _names(rest) if body[name][0] == "constant"]
    return int(_operands(constants[0])) if len(constants) == 1 else 1


def _operands(rest: str) -> str:
    return rest.partition(")")[0]


def _names(rest: str) -> list[str]:
    return re.findall(r"%([\w.-]+)", _operands(rest))


def _collectives(computation, instructions):
    shapes = {name: _arrays(shape) for name, shape, _, _ in instructions}
    for _, _, operation, rest in instructions:
        kind = operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        if computation.startswith("all-reduce-scatter"):  # each device keeps one shard of the sum
            kind = "reduce-scatter"
        given = tuple(array for name in _names(rest) for array in shapes[name])
        yield kind, given, _slices(rest) if kind == "send" else _group_size(rest)


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


def _arrays(shape: str):
    return tuple(
        (kind, tuple(int(n) for n in dimensions.split(",") if n))
        for kind, dimensions in ARRAY.findall(shape)
    )
