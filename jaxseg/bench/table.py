"""Makes a Markdown table of measurements that were written as JSON."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.bench.timing import format_number
from jaxseg.errors import ConfigError

HEAD = (
    "| measured | recipe | device | batch | image | type | images/s | p50, ms | p95, ms |"
    " compiled in, s | peak, GB | MFU | waiting |"
)
RULE = "|---|---|---|---:|---:|---|" + "---:|" * 7
NAMED = ("jax", "jaxlib", "python")  # the versions below the table


def read_measurement(path: pathlib.Path) -> dict[str, Any]:
    """Reads the result file of a measurement.

    Raises:
      ConfigError: if it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give the path of a file that --json has written"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON; give a file that --json has written") from error
    if not is_measurement(found):
        raise ConfigError(
            f"{path} is not a measurement of a recipe; give files that `jaxseg bench train`,"
            " `infer` or `data` has written with --json"
        )
    return found


def is_measurement(found: Any) -> bool:
    """Returns whether the content of a JSON file is a measurement of a recipe."""
    return isinstance(found, Mapping) and {"what", "recipe", "images_per_second"} <= found.keys()


def markdown_table(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table with a row for each measurement, in the given order.

    Below the table stand the versions, the dates, and what a reader of a row must know: kernels
    that XLA replaced, and why the largest batch is not larger.

    Args:
      measurements: the content of result files (`jaxseg.bench.measurement.Measurement`).
    """
    notes = dict.fromkeys(_made(found) for found in measurements)
    for found in measurements:
        name = f"{found['what']} {_recipe(found)}, batch {found['batch']}"
        for operator, reason in found["kernels_refused"].items():
            notes[f"- {name}: XLA replaces the kernel of {operator} ({reason})"] = None
        if found["limit"]:
            notes[f"- {name} is the largest; the next: {found['limit']}"] = None
    return "\n".join([HEAD, RULE, *map(_row, measurements), "", *notes]) + "\n"


def _row(found):
    height, width = found["image_hw"]
    seconds = found["seconds"]
    compiled = _number(found["compile_seconds"], "{:.1f}")
    cells = [
        found["what"],
        _recipe(found),
        f"{found['devices']} x {found['device']}",
        found["batch"],
        f"{height} x {width}",
        found["dtype"] or "",
        format_number(found["images_per_second"]),
        format_number(1e3 * seconds["p50"]),
        format_number(1e3 * seconds["p95"]),
        compiled + (" (cached)" if found["compiled_before"] else ""),
        _number(found["peak_memory_bytes"], "{:.2f}", 1e-9),
        _number(found["mfu"], "{:.1%}"),
        _number(found["data_share"], "{:.1%}"),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _recipe(found):
    return ", ".join([f"`{found['recipe']}`", *found["overrides"]])


def _number(value, form, factor=1.0):
    return "" if value is None else form.format(value * factor)


def _made(found):
    named = ", ".join(f"{name} {found['versions'][name]}" for name in NAMED)
    return f"- {found['date']}, {named}"
