"""What the page knows of a run, wherever it was read from."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from jaxseg.evaluation.per_image import PerImageCounts
from jaxseg.report.records import Curve, RunError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """The scores of the last evaluation of a run, all in 0..1.

    Attributes:
      step: the step that was evaluated, or None if it is not known.
      classes: the names of the C classes.
      iou: IoU of each class; NaN if it is undefined.
      means: mIoU, mAcc and aAcc, as far as they are known.
      pixels: labeled pixels of each class, or None if they are not known.
      counts: what each image contributes, or None if it is not known.
      missing: why `counts` is None.
      folder: the folder of its pictures, or None if it is not known.
    """

    step: int | None
    classes: tuple[str, ...]
    iou: Float[np.ndarray, " c"]
    means: Mapping[str, float]
    pixels: Int64[np.ndarray, " c"] | None = None
    counts: PerImageCounts | None = None
    missing: str = ""
    folder: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """All that the page tells of a run.

    Attributes:
      name: a short name that no other run of the page has.
      path: the work directory or the log.
      curves: what was logged while training and evaluating, by name.
      evaluation: the last evaluation, or None if there was none.
      config: the resolved config with dotted keys, empty if it is not known.
      facts: versions, devices and the like.
    """

    name: str
    path: pathlib.Path
    curves: Mapping[str, Curve]
    evaluation: Evaluation | None
    config: Mapping[str, Any]
    facts: Mapping[str, str]


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the shortest ends of paths that differ from each other.

    >>> short_names([pathlib.Path("runs/a"), pathlib.Path("runs/b"), pathlib.Path("old/b")])
    ['a', 'runs/b', 'old/b']

    Raises:
      RunError: if a path is given twice.
    """
    parts = [path.absolute().resolve().parts for path in paths]
    if twice := [path for path, count in Counter(parts).items() if count > 1]:
        raise RunError(f"{pathlib.Path(*twice[0])} is given twice; name every run once")
    names = []
    for own in parts:
        length = 1
        while sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names
