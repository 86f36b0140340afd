"""Prints the scores of an evaluation and writes them to files."""

import csv
import io
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import rich.console
from ml_collections import ConfigDict

from jaxseg.atomic_files import write_png, write_text
from jaxseg.data.source import evaluated_on
from jaxseg.evaluation import charts
from jaxseg.evaluation.metrics import Scores
from jaxseg.reporting.console import print_line, print_table
from jaxseg.reporting.manifest import strict_json
from jaxseg.reporting.report import Report
from jaxseg.reporting.visualize import numbered_names

ADDED = "boundary_mIoU", "ECE"  # the means of config.eval.measures


def print_evaluation(
    scores: Scores, classes: Sequence[str], console: rich.console.Console | None = None
):
    """Prints the scores of every class in percent, then the means.

    The means tell how many classes they are averaged over.

    Args:
      scores: the scores to print.
      classes: names of the classes.
      console: where to print. None is standard output.
    """
    columns = {"IoU": scores.iou, "accuracy": scores.acc, "Dice": scores.dice}
    if scores.boundary_iou is not None:
        columns["boundary IoU"] = scores.boundary_iou
    values = zip(classes, *columns.values(), strict=True)
    rows = [(name, *map(_percent, numbers)) for name, *numbers in values]
    console = console or rich.console.Console()
    print_table(console, rows, head=("class", *columns))
    means = {name: _percent(value, "undefined") for name, value in scores.reported().items()}
    print_line(
        console,
        f"aAcc {means['aAcc']} · "
        f"mIoU {means['mIoU']} ({scores.iou_classes} of {len(classes)} classes) · "
        f"mAcc {means['mAcc']} ({scores.acc_classes} of {len(classes)} classes) · "
        f"mDice {means['mDice']} · mFscore {means['mFscore']}"
        + "".join(f" · {name} {means[name]}" for name in ADDED if name in means),
    )
    if absent := [name for name, pixels in zip(classes, scores.pixels, strict=True) if not pixels]:
        print_line(console, f"not in the labels: {', '.join(absent)}")
    if scores.outside > 0:
        print_line(
            console,
            f"{scores.outside:.2%} of the labeled pixels were predicted as outputs without a class"
            " and count as errors (config.eval.mask_absent_classes leaves these outputs out)",
        )


def report_evaluation(report: Report, step: int, scores: Scores, classes: Sequence[str]):
    """Prints the scores at `step` and records them in the logs of a run.

    Nothing happens if the report is not enabled.
    """
    if report.enabled:
        print_evaluation(scores, classes, report.console)
        iou = dict(zip(classes, scores.iou.tolist(), strict=True))
        report.evaluation(step, _rounded_means(scores), iou)


def what_was_evaluated(config: ConfigDict, step: int) -> dict[str, str | int]:
    """Returns the entries of `metrics.json` that say what the scores are of.

    Args:
      config: the resolved config.
      step: the step of the checkpoint.
    """
    source = evaluated_on(config.data)
    return {
        "step": step,
        "dataset": source.dataset.name,
        "split": source.split,
        "protocol": config.eval.protocol,
    }


def write_evaluation(
    directory: str | os.PathLike,
    scores: Scores,
    classes: Sequence[str],
    evaluated: Mapping[str, str | int],
):
    """Writes the scores of a dataset into a directory.

    `metrics.json` contains the means, rounded as reported, and what they are of. `per_class.csv`
    contains the scores of each class in 0..1, and nothing where a score is undefined. The charts
    are `confusion.png` and `per_class.png`, and `reliability.png` if the calibration was measured;
    `legend.txt` lists the names that no font can draw, if there are any.

    Args:
      directory: where the files are written; made if it is missing.
      scores: the scores.
      classes: the names of the classes.
      evaluated: what the scores are of (`what_was_evaluated`).

    Raises:
      OutputError: if a file cannot be written.
    """
    directory = pathlib.Path(directory)
    means = _rounded_means(scores) | {
        **evaluated,
        "classes": len(classes),
        "classes_in_mIoU": scores.iou_classes,
        "classes_in_mAcc": scores.acc_classes,
        "pixels": int(scores.pixels.sum()),
    }
    write_text(directory / "metrics.json", strict_json(means, indent=2) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    columns = {"iou": scores.iou, "acc": scores.acc, "dice": scores.dice}
    if scores.boundary_iou is not None:
        columns["boundary_iou"] = scores.boundary_iou
    writer.writerow(("class", *columns, "pixels"))
    numbers_of = zip(classes, *columns.values(), scores.pixels.tolist(), strict=True)
    for name, *values, pixels in numbers_of:
        numbers = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        writer.writerow((name, *numbers, pixels))
    write_text(directory / "per_class.csv", table.getvalue())
    if numbered := numbered_names(classes):
        write_text(directory / "legend.txt", "".join(f"{line}\n" for line in numbered))
    drawn = {
        "confusion.png": charts.confusion_chart(scores.confusion, classes),
        "per_class.png": charts.class_bars(scores.iou, classes),
    }
    if scores.calibration is not None:
        drawn["reliability.png"] = charts.reliability_diagram(scores.calibration)
    else:  # that of an earlier evaluation
        (directory / "reliability.png").unlink(missing_ok=True)
    for name, chart in drawn.items():
        write_png(directory / name, chart)


def _rounded_means(scores):
    """Returns the reported numbers rounded again, which turns 0.5417000000000001 into 0.5417."""
    return {name: round(value, 4) for name, value in scores.reported().items()}


def _percent(value, undefined="absent"):
    return undefined if math.isnan(value) else f"{100 * value:.2f}"
