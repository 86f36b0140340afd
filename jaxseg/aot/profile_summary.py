"""Sums the costs of a program's instructions by module, direction and kind, and shows the sums."""

import re
from collections.abc import Sequence
from typing import Any

from jaxseg.aot.step_profile import COLLECTIVE, DIRECTIONS, KERNEL, Cost, totals

LARGEST = 12  # instructions that are listed one by one
MODULES = 16  # modules that the text lists; the file has all


def summarize(costs: Sequence[Cost]) -> dict[str, Any]:
    """Returns the sums for `compile.json`.

    Args:
      costs: the costs of all instructions (`step_profile.instruction_costs`).

    Returns:
      Seconds by kind, by direction, and by module and direction; the largest instructions; and
      how many instructions and kernel calls have no estimate. "seconds" is the sum of all
      instructions with an estimate, kernels included. "bytes" is what they read and write, on a
      GPU.
    """
    unknown = [cost for cost in costs if cost.seconds is None]
    modules: dict[str, dict[str, float]] = {}
    for cost in costs:
        row = modules.setdefault(cost.module, dict.fromkeys(DIRECTIONS, 0.0))
        row[cost.direction] += cost.seconds or 0.0
    kernels = [cost for cost in costs if cost.kind == KERNEL]
    return {
        "seconds": sum(cost.seconds or 0.0 for cost in costs),
        "bytes": sum(cost.bytes for cost in costs),
        "by_kind": totals(costs, lambda cost: cost.kind),
        "by_direction": totals(costs, lambda cost: cost.direction),
        "by_module": dict(sorted(modules.items(), key=lambda item: -sum(item[1].values()))),
        "kernel_calls": sum(cost.times for cost in kernels),
        "kernel_calls_unknown": sum(cost.times for cost in kernels if cost.seconds is None),
        "unknown": sum(cost.kind not in (KERNEL, COLLECTIVE) for cost in unknown),
        "largest": [
            {
                "seconds": cost.seconds or 0.0,
                "instruction": cost.instruction,
                "shape": cost.shape,
                "module": cost.module,
                "direction": cost.direction,
                "kind": cost.kind,
                "times": cost.times,
            }
            for cost in sorted(costs, key=lambda cost: -(cost.seconds or 0.0))[:LARGEST]
        ],
    }


def format_summary(summary: dict[str, Any], depth: int = 2) -> str:
    """Formats what `summarize` returns as text.

    Args:
      summary: the sums.
      depth: how many parts of a module's path the table has; deeper modules are added up.
    """
    whole = summary["seconds"]
    modules: dict[str, dict[str, float]] = {}
    for path, row in summary["by_module"].items():
        key = "/".join(path.split("/")[:depth])
        sums = modules.setdefault(key, dict.fromkeys(DIRECTIONS, 0.0))
        for direction, seconds in row.items():
            sums[direction] += seconds
    ordered = sorted(modules.items(), key=lambda item: -sum(item[1].values()))
    used = [name for name in DIRECTIONS if any(row[name] for _, row in ordered)]
    lines = ["    " + "".join(f"{name:>12}" for name in ("ms", "share", *used)) + "  module"]
    for path, row in ordered[:MODULES]:
        total = sum(row.values())
        cells = "".join(f"{row[name] * 1e3:12.2f}" for name in used)
        lines.append(f"    {total * 1e3:12.2f}{total / whole:12.1%}{cells}  {path}")
    if rest := ordered[MODULES:]:
        total = sum(sum(row.values()) for _, row in rest)
        lines.append(f"    {total * 1e3:12.2f}{total / whole:12.1%}  {len(rest)} more modules")
    lines.append("  largest instructions")
    for row in summary["largest"]:
        shape = re.sub(r"(.+?)(?:, \1)+$", r"\1, …", row["shape"])
        lines.append(
            f"    {row['seconds'] * 1e3:12.2f}{row['seconds'] / whole:12.1%}  {row['instruction']},"
            f" {row['direction']}, {row['module']}: {shape}"
        )
    return "\n".join(lines)


def format_kinds(summary: dict[str, Any]) -> str:
    """Formats the shares of the kinds of instructions, and what the sum leaves out."""
    whole = summary["seconds"]
    kinds = [f"{kind} {part / whole:.0%}" for kind, part in summary["by_kind"].items() if part]
    unknown = {
        "instructions": summary["unknown"],
        f"of {summary['kernel_calls']} kernel calls": summary["kernel_calls_unknown"],
    }
    left_out = [f"{count} {what}" for what, count in unknown.items() if count]
    return ", ".join(kinds) + (f"; without {' and '.join(left_out)}" if left_out else "")
