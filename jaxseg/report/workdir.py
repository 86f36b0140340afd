"""Reads a work directory: the log, the last evaluation, the config and `run.json`."""

import math
import pathlib
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.config import flatten_config
from jaxseg.errors import CorruptFileError
from jaxseg.evaluation.metrics import compute_scores
from jaxseg.evaluation.per_image import read_per_image
from jaxseg.report.records import (
    Record,
    RunError,
    make_curves,
    number,
    numbers,
    read_json,
    read_json_lines,
    read_table,
    step_number,
)
from jaxseg.report.run import Evaluation, Run


def read_workdir(name: str, path: pathlib.Path) -> Run:
    """Reads the work directory of a training run or of an evaluation.

    Raises:
      RunError: if the folder is no work directory, or if a file in it is damaged.
    """
    log = path / "metrics.jsonl"
    if not log.exists() and not (path / "per_class.csv").exists():
        raise RunError(
            f"{path} has neither metrics.jsonl nor per_class.csv, so it is no work directory;"
            " give what --workdir named in training or evaluation, or a .log.json of"
            " mmsegmentation"
        )
    curves = make_curves(_records(log)) if log.exists() else {}
    return Run(
        name=name,
        path=path,
        curves=curves,
        evaluation=_read_evaluation(path, curves),
        config=flatten_config(read_json(path / "config.json")),
        facts=_read_facts(path / "run.json"),
    )


def _records(log):
    for place, line in read_json_lines(log):
        if line.get("kind") not in ("train", "eval"):
            raise RunError(
                f"{place} is of kind {line.get('kind')!r}, not 'train' or 'eval'; delete the line,"
                " or restore the file"
            )
        step = step_number(place, line.pop("step", None))
        yield Record(step, numbers(line))


def _read_evaluation(path, curves) -> Evaluation | None:
    table = path / "per_class.csv"
    if not table.exists():
        return None
    rows = read_table(table, ("class", "iou", "pixels"))
    classes = tuple(row["class"] for row in rows)
    iou = np.array([number(row["iou"]) for row in rows], np.float64)
    pixels = np.nan_to_num([number(row["pixels"]) for row in rows]).astype(np.int64)
    for folder in _prediction_folders(path):
        if (folder / "per_image.npz").exists():
            counts = _read_counts(folder / "per_image.npz")
            scores = compute_scores(counts.confusion)
            same = counts.classes == classes and np.array_equal(scores.pixels, pixels)
            if same and np.allclose(scores.iou, iou, rtol=0, atol=1e-6, equal_nan=True):
                return Evaluation(
                    step=int(folder.name.removeprefix("step_")),
                    classes=classes,
                    iou=scores.iou,
                    means={"mIoU": scores.miou, "mAcc": scores.macc, "aAcc": scores.aacc},
                    pixels=scores.pixels,
                    counts=counts,
                    folder=folder,
                )
    means = numbers(read_json(path / "metrics.json"))
    return Evaluation(
        step=_last_step(curves, means.get("mIoU", math.nan)),
        classes=classes,
        iou=iou,
        means=means,
        pixels=pixels,
        missing=(
            "its evaluation left no per_image.npz, which an older version did not write;"
            f" jaxseg eval --workdir {shlex.quote(str(path))} writes it"
        ),
    )


def _prediction_folders(path):
    """Returns the folders of evaluations, those of the last steps first."""
    found = [
        folder
        for folder in (path / "predictions").glob("step_*")
        if folder.name.removeprefix("step_").isdecimal()
    ]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step_")), reverse=True)


def _read_counts(file):
    try:
        return read_per_image(file)
    except CorruptFileError as error:
        raise RunError(str(error)) from error


def _last_step(curves, miou):
    """Returns the last step of the log if its mIoU is that of `metrics.json`."""
    curve = curves.get("mIoU")
    if curve is None or not math.isclose(curve.values[-1], miou, abs_tol=1e-9):
        return None
    return int(curve.steps[-1])


def _read_facts(path):
    try:
        return _facts(read_json(path))
    except (TypeError, AttributeError, KeyError) as error:
        raise RunError(
            f"{path} has an entry of another type than jaxseg writes: {error}; restore the file,"
            " or delete it"
        ) from error


def _facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Returns the entries of `run.json` as texts."""
    if not manifest:
        return {}
    starts = manifest.get("resumed") or []
    devices = Counter(map(str, manifest.get("devices") or []))
    versions = manifest.get("versions") or {}
    mesh = manifest.get("mesh") or {}
    facts = {
        "started": manifest.get("started"),
        "resumed": f"{len(starts)} times, last {starts[-1].get('started')}" if starts else "never",
        "command": shlex.join(map(str, manifest.get("command") or [])),
        "start": manifest.get("start"),
        "git": manifest.get("git"),
        "platform": manifest.get("platform"),
        "devices": ", ".join(f"{count} {kind}" for kind, count in devices.items()),
        "processes": manifest.get("processes"),
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.items()),
        "global batch": manifest.get("global_batch"),
        **versions,
    }
    return {name: str(fact) for name, fact in facts.items() if fact not in (None, "")}
