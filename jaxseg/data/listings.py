"""Many things in few words, for messages."""

from collections.abc import Sequence

import numpy as np


def first_few(lines: Sequence[object], limit: int = 5) -> str:
    """A line each for the first, and one for how many there are besides."""
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    return shown + (f"\n  and {len(lines) - limit} more" if len(lines) > limit else "")


def ranges(values: np.ndarray) -> str:
    """'0-18, 255' for 0, 1, … 18, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
