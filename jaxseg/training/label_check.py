"""Watches which classes the first labels of a run hold, for a word of warning."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

BATCHES = 50


class LabelCheck:
    """Notes the classes in the labels of the first batches of this process.

    A model that sees one class alone predicts it everywhere, with a loss near 0.
    """

    def __init__(self, classes: Sequence[str]):
        self._classes = classes
        self._pixels = np.zeros(256, np.int64)
        self._left = BATCHES

    def warning(self, labels: Integer[np.ndarray, "b h w"], last: bool) -> str | None:
        """Counts the labels of a batch, and returns what is odd when enough were seen.

        Args:
          labels: the labels of the next batch.
          last: whether the run ends with this batch.
        """
        if not self._left:
            return None
        self._pixels += np.bincount(labels.ravel(), minlength=256)[:256]
        self._left = 0 if last else self._left - 1
        present = np.flatnonzero(self._pixels[: len(self._classes)])
        if self._left or len(present) > 1:
            return None
        found = f"one class, {self._classes[present[0]]!r}" if len(present) else "no class"
        return (
            f"warning: the labels of the first batches hold {found}; a model learns nothing from"
            " that. `jaxseg show` lists the values in the labels and what they mean"
        )
