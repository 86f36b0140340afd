"""Reads the small files that runs leave: JSON, lines of JSON, and tables."""

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from jaxseg.errors import JaxsegError


class RunError(JaxsegError):
    """The records of a run are missing, damaged, or not those of a run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One logged quantity over the steps of a run.

    Attributes:
      steps: number of updates made so far, ascending.
      values: the quantity at each step; NaN where it was not finite.
    """

    steps: Int64[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Record:
    """The numbers that were logged together at a step."""

    step: int
    values: Mapping[str, float]


def read_text(path: pathlib.Path) -> str:
    """Reads a file as UTF-8. Bytes that are no UTF-8 are replaced.

    Raises:
      RunError: if the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one if the file does not exist.

    Raises:
      RunError: if the file is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {error}; restore the file, or delete it") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object; restore the file, or delete it")
    return content


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads a file with one JSON object per line.

    An incomplete last line is left out: the run may be writing it.

    Returns:
      An iterator over the place of each line, for messages, and its object.

    Raises:
      RunError: for a line that is not a JSON object. The message names it.
    """
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise RunError(
                f"{place} is not JSON: {error}; delete the line, or restore the file"
            ) from error
        if not isinstance(content, dict):
            raise RunError(f"{place} holds no JSON object; delete the line, or restore the file")
        yield place, content


def read_table(path: pathlib.Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Reads the rows of a CSV file that has at least these columns.

    Raises:
      RunError: if the file cannot be read, or a row lacks a column.
    """
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
    except csv.Error as error:
        raise RunError(f"{path} is no table: {error}; evaluate the run again") from error
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in columns if row.get(name) is None]:
            raise RunError(
                f"{path}, row {number} has no column {missing[0]!r}; evaluate the run again"
            )
    return rows


def number(value: Any) -> float:
    """Returns a value of JSON or CSV as a float: NaN for null, infinity and what is no number."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def step_number(place: str, value: Any) -> int:
    """Returns a step.

    Raises:
      RunError: if the value is no step. The message names the place.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise RunError(f"{place} has no step: {value!r}; delete the line, or restore the file")
    return value


def numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a JSON object, with NaN for null."""
    return {
        name: number(value)
        for name, value in content.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def make_curves(records: Iterable[Record]) -> dict[str, Curve]:
    """Collects records into one curve for each quantity.

    A record at an earlier step than the one before it comes from a run that was resumed. It
    replaces the later records. Of two records of a quantity at one step, the last one holds.
    """
    points: dict[str, dict[int, float]] = {}
    last = -1
    for record in records:
        if record.step < last:
            points = {
                name: {step: value for step, value in curve.items() if step < record.step}
                for name, curve in points.items()
            }
        last = record.step
        for name, value in record.values.items():
            points.setdefault(name, {})[record.step] = value
    return {
        name: Curve(np.array(list(curve), np.int64), np.array(list(curve.values()), np.float64))
        for name, curve in points.items()
        if curve
    }
