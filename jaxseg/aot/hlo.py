"""Reads the text of a compiled program: XLA's HLO after optimization, the program of one device."""

import collections
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

# %name = SHAPE operation(operands), attributes
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .* )?\{$")
CALLED = re.compile(
    r"(?:calls|body|branch_computations|true_computation|false_computation)="
    r"(%?[\w.-]+|\{[^}]*\})"
)
APPLIED = re.compile(r"to_apply=%?([\w.-]+)")
KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CONDITION = re.compile(r"condition=%?([\w.-]+)")
GET, INDEX = "get-tuple-element", re.compile(r"index=(\d+)")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")

Shape = tuple[str, tuple[int, ...]]  # dtype, dimensions


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name: its name, without the percent sign.
      shape: the text of the shape of its result, with the layout.
      operation: the name of the operation, such as "fusion".
      rest: the text after the opening parenthesis: operands and attributes. Operands are names
        alone, as XLA writes them after optimization.
    """

    name: str
    shape: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Returns the names of the operands."""
        return re.findall(r"%([\w.-]+)", self.rest.partition(")")[0])

    @property
    def called(self) -> list[str]:
        """Returns the computations that it runs once each time, or once per round of a loop."""
        found = CALLED.findall(self.rest)
        if self.operation == "call":
            found += APPLIED.findall(self.rest)
        return [name for names in found for name in re.findall(r"[\w.-]+", names)]

    @property
    def literal(self) -> str:
        """Returns the text within the parentheses, which is the value of a constant."""
        return self.rest.partition(")")[0]


@dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: the instructions of every computation, by its name.
      entry: the name of the computation with which the program starts.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    _shapes: dict[str, dict[str, str]] = field(default_factory=dict)

    def run_counts(
        self, enters: Callable[[Instruction, str], bool] = lambda *_: True
    ) -> dict[str, int]:
        """Returns how often each computation runs, as far as the program reaches it.

        Args:
          enters: whether to follow a call, given the instruction and the computation it calls.
        """
        counts: dict[str, int] = collections.Counter()

        def visit(name, count):
            counts[name] += count
            for instruction in self.computations[name]:
                called = instruction.called
                trips = self.trips(instruction) if instruction.operation == "while" else 1
                for callee in called:
                    if enters(instruction, callee):
                        visit(callee, count * trips)

        visit(self.entry, 1)
        return counts

    def shapes(self, computation: str) -> dict[str, str]:
        """Returns the shape of every instruction of a computation, by its name."""
        if computation not in self._shapes:
            self._shapes[computation] = {
                instruction.name: instruction.shape
                for instruction in self.computations[computation]
            }
        return self._shapes[computation]

    def trips(self, loop: Instruction) -> int:
        """Returns the number of iterations of a "while" instruction.

        XLA states it for most loops. Other loops count from 0 to the only constant in their
        condition, in steps of what their body adds.
        """
        if known := KNOWN_TRIPS.search(loop.rest):
            return int(known[1])
        condition = self.computations[CONDITION.findall(loop.rest)[0]]
        limits = [int(step.literal) for step in condition if step.operation == "constant"]
        if len(limits) != 1:
            return 1
        counters = [INDEX.findall(step.rest)[0] for step in condition if step.operation == GET]
        body = self.computations[loop.called[0]]
        step = _step(int(counters[0]), body) if len(counters) == 1 else 1
        return limits[0] // step


def parse(text: str) -> Module:
    """Reads the text of a compiled program, such as `compiled.as_text()`."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = found[match[2]] = []
            entry = match[2] if match[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.append(Instruction(*match.groups()))
    return Module(found, entry)


@functools.lru_cache(maxsize=4096)
def arrays(shape: str) -> tuple[Shape, ...]:
    """Returns (dtype, dimensions) of the array, or of all arrays of the tuple, of a shape."""
    return tuple(
        (kind, tuple(int(n) for n in dimensions.split(",") if n))
        for kind, dimensions in ARRAY.findall(shape)
    )


def size_bytes(shape: Shape) -> float:
    """Returns the size in bytes of an array of this dtype and these dimensions."""
    kind, dimensions = shape
    found = re.search(r"\d+", kind)
    bits = int(found[0]) if found else 8  # pred
    return math.prod(dimensions) * bits / 8


def _step(counter: int, body: list[Instruction]) -> int:
    """Returns what the body of a loop adds to element `counter` of its carry."""
    by_name = {instruction.name: instruction for instruction in body}
    carried = body[-1]  # the tuple of the carry
    update = by_name[carried.operands[counter]]
    if update.operation != "add":
        return 1  # `lax.scan` counts in steps of one
    constants = [
        by_name[name].literal for name in update.operands if by_name[name].operation == "constant"
    ]
    return int(constants[0]) if len(constants) == 1 else 1
