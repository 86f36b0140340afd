"""Times calls, and summarizes the times."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Summarizes the times of the steps.

    Attributes:
      p50: the median.
      p95: the 95th percentile.
      mean: the mean.
      steps: how many steps were timed.
    """

    p50: float
    p95: float
    mean: float
    steps: int


def summarize(times: Sequence[float]) -> Seconds:
    """Returns median, 95th percentile and mean of times in seconds."""
    p50, p95 = np.percentile(times, (50, 95))
    return Seconds(p50=float(p50), p95=float(p95), mean=float(np.mean(times)), steps=len(times))


def format_number(value: float) -> str:
    """Returns a number above 0 with at least four significant digits, and without an exponent.

    >>> [format_number(x) for x in (0.01234567, 1.5, 4589.04)]
    ['0.01235', '1.500', '4589']
    """
    decimals = 3 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(decimals, 0)}f}"


def time_calls(call: Callable[[], object], *, warmup: int, steps: int) -> Seconds:
    """Times a function that returns when its work is done.

    Args:
      call: the function.
      warmup: calls before the first that is timed.
      steps: calls that are timed, each by itself.
    """
    for _ in range(warmup):
        call()
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return summarize(times)
