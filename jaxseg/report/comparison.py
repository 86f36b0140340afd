"""Compares runs: their scores with intervals, and differences to the first run."""

import dataclasses
import math
from collections.abc import Sequence

from jaxseg.report.bootstrap import difference_intervals, same_images, score_intervals
from jaxseg.report.run import Evaluation, Run


@dataclasses.dataclass(frozen=True)
class Score:
    """A score or a difference of scores, with its interval.

    Attributes:
      value: the score in 0..1, or the difference in -1..1; NaN if it is undefined.
      low: lower bound; NaN if there is no interval.
      high: upper bound; NaN if there is no interval.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """Returns whether there is an interval, and zero is outside it."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Compared:
    """The scores of one run, beside those of the first run.

    Attributes:
      run: the run.
      miou: its mIoU, or None without an evaluation.
      iou: IoU by class; empty without an evaluation.
      miou_difference: mIoU minus that of the first run, or None if they are not compared.
      iou_difference: the same by class; empty if they are not compared.
    """

    run: Run
    miou: Score | None
    iou: dict[str, Score]
    miou_difference: Score | None = None
    iou_difference: dict[str, Score] = dataclasses.field(default_factory=dict)


def compare(runs: Sequence[Run]) -> tuple[list[Compared], list[str]]:
    """Compares every run with the first one that has an evaluation.

    Returns:
      The runs with their scores, and notes on what is left out and why.
    """
    compared, notes = [], []
    first = next((run for run in runs if run.evaluation), None)
    for run in runs:
        found = run.evaluation
        if found is None or first is None or first.evaluation is None:
            notes.append(f"{run.name} has no evaluation yet: it has no scores here.")
            compared.append(Compared(run, None, {}))
            continue
        if found.counts is None:
            notes.append(f"{run.name} has no intervals and no pictures: {found.missing}.")
        miou, iou = _scores(found)
        if run is first:
            compared.append(Compared(run, miou, iou))
        elif _classes_differ(first.evaluation, found):
            notes.append(_other_classes(first, run))
            compared.append(Compared(run, miou, iou))
        else:
            differences = _differences(first.evaluation, found)
            compared.append(Compared(run, miou, iou, *differences))
            if _on_same_images(first.evaluation, found) is False:
                notes.append(
                    f"The differences of {run.name} to {first.name} have no intervals: the two"
                    " were not evaluated on the same images."
                )
    return compared, notes


def _classes_differ(first: Evaluation, second: Evaluation) -> bool:
    """Returns whether both name their classes, and not the same ones."""
    return bool(first.classes and second.classes) and set(first.classes) != set(second.classes)


def _on_same_images(first: Evaluation, second: Evaluation) -> bool | None:
    """Returns whether two evaluations were on the same images, or None if it is not known."""
    if first.counts is None or second.counts is None:
        return None
    return same_images(first.counts, second.counts)


def _scores(evaluation: Evaluation):
    """Returns the mIoU, and the IoU of each class."""
    mean = evaluation.means.get("mIoU", math.nan)
    values = evaluation.iou.tolist()
    if evaluation.counts is None:
        return Score(mean), dict(zip(evaluation.classes, map(Score, values), strict=True))
    bounds = score_intervals(evaluation.counts)
    iou = map(Score, values, *bounds.iou.tolist())
    return Score(mean, *bounds.miou.tolist()), dict(zip(evaluation.classes, iou, strict=True))


def _differences(first: Evaluation, second: Evaluation):
    """Returns the difference of the mIoU, and of the IoU of each class."""
    before = dict(zip(first.classes, first.iou.tolist(), strict=True))
    after = dict(zip(second.classes, second.iou.tolist(), strict=True))
    iou = {name: after[name] - before[name] for name in after if name in before}
    mean = second.means.get("mIoU", math.nan) - first.means.get("mIoU", math.nan)
    if first.counts is None or second.counts is None or not _on_same_images(first, second):
        return Score(mean), {name: Score(value) for name, value in iou.items()}
    bounds = difference_intervals(first.counts, second.counts)
    scores = map(Score, iou.values(), *bounds.iou.tolist())
    return Score(mean, *bounds.miou.tolist()), dict(zip(iou, scores, strict=True))


def _other_classes(first: Run, run: Run) -> str:
    """Says that two runs cannot be compared, and which classes differ."""
    own, other = (set(r.evaluation.classes) if r.evaluation else set() for r in (run, first))
    parts = [
        f"only in {name}: {', '.join(sorted(classes)[:5])}{' …' if len(classes) > 5 else ''}"
        for name, classes in ((first.name, other - own), (run.name, own - other))
        if classes
    ]
    return (
        f"Differences of {run.name} to {first.name} are left out: their classes differ"
        f" ({'; '.join(parts)})."
    )


def config_differences(runs: Sequence[Run]) -> dict[str, list[object]]:
    """Returns the settings that differ, with the value in every run that has a config.

    A run that lacks the setting has `...` in its place.
    """
    configs = [run.config for run in runs if run.config]
    keys = sorted(set().union(*configs)) if configs else []
    rows = {key: [config.get(key, ...) for config in configs] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}
