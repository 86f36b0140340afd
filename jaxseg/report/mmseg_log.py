"""Reads the `.log.json` that training with mmsegmentation 0.x leaves.

Its first line describes the machine. A line of mode `train` has the means since the line before it.
A line of mode `val` has the scores of an evaluation. Its `iter` is the number of validation
batches, so the step is that of the last `train` line.
"""

import pathlib
import re
from typing import Any

import numpy as np

from jaxseg.report.records import (
    Record,
    RunError,
    make_curves,
    number,
    numbers,
    read_json_lines,
    step_number,
)
from jaxseg.report.run import Evaluation, Run

# Names of quantities there and here. Earlier releases called the cross-entropy loss_seg.
NAMES = {
    "loss": "loss",
    "decode.loss_ce": "decode_loss",
    "decode.loss_seg": "decode_loss",
    "aux.loss_ce": "auxiliary_loss",
    "aux.loss_seg": "auxiliary_loss",
    "decode.loss_cls": "loss_cls",
    "decode.loss_mask": "loss_mask",
    "decode.loss_dice": "loss_dice",
    "lr": "learning_rate",
    "grad_norm": "gradient_norm",
    "time": "step_seconds",
}
SCORES = ("mIoU", "mAcc", "aAcc")
MISSING = "a log of mmsegmentation does not tell what each image contributes"


def is_mmseg_log(path: pathlib.Path) -> bool:
    """Returns whether a file is named like a log of mmsegmentation."""
    return path.name.endswith(".json")


def read_mmseg_log(name: str, path: pathlib.Path) -> Run:
    """Reads a log of mmsegmentation.

    Raises:
      RunError: if the file cannot be read, if a line is damaged, or if no line is of training or
        evaluation.
    """
    records, environment, last_scores, step = [], {}, None, 0
    for place, line in read_json_lines(path):
        mode = line.get("mode")
        if mode == "train":
            step = step_number(place, line.get("iter"))
            found = numbers(line)
            records.append(
                Record(step, {ours: found[own] for own, ours in NAMES.items() if own in found})
            )
        elif mode == "val":
            step = step or step_number(place, line.get("iter"))
            last_scores = step, _scores(line)
            known = {key: last_scores[1][key] for key in SCORES if key in last_scores[1]}
            records.append(Record(step, known))
        elif "env_info" in line:
            environment = line
    if not records:
        raise RunError(
            f"{path} has no line of mode train or val, so it is no log of mmsegmentation 0.x; give"
            " its .log.json, or a work directory of jaxseg"
        )
    return Run(
        name=name,
        path=path,
        curves=make_curves(records),
        evaluation=_evaluation(*last_scores) if last_scores else None,
        config={},
        facts=_facts(environment),
    )


def _scores(line):
    """Returns the scores of a line in 0..1; some versions write percent."""
    found = numbers({key: value for key, value in line.items() if key in SCORES or "IoU." in key})
    percent = any(value > 1 for value in found.values())
    return {key: value / 100 if percent else value for key, value in found.items()}


def _evaluation(step, scores):
    classes = [key.removeprefix("IoU.") for key in scores if key.startswith("IoU.")]
    return Evaluation(
        step=step,
        classes=tuple(classes),
        iou=np.array([scores[f"IoU.{name}"] for name in classes], np.float64),
        means={key: number(scores[key]) for key in SCORES if key in scores},
        missing=MISSING,
    )


def _facts(environment: dict[str, Any]) -> dict[str, str]:
    """Returns the lines `NAME: VALUE` of `env_info`, and what else the first line tells."""
    facts = {}
    for line in str(environment.get("env_info", "")).splitlines():
        found = re.fullmatch(r"(\w[^:]*): *(\S.*)", line)
        if found:
            key = "devices" if re.match(r"GPU[ \d]", found[1]) else found[1]
            facts[key] = f"{facts[key]}; {found[2]}" if key in facts else found[2]
    others = {key: environment.get(key) for key in ("mmseg_version", "exp_name", "seed")}
    return facts | {key: str(value) for key, value in others.items() if value is not None}
