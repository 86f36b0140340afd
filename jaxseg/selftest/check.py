"""One check of the selftest: errors, each with what is allowed, and the worst of them."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Errors = dict[str, tuple[float, float]]  # by quantity: its error and the tolerance for it


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: what was checked.
      error: the largest error as a share of what is allowed; not more than 1 passes.
      worst: the quantity with that error, or what was raised.
      seconds: how long the check took.
    """

    name: str
    error: float
    worst: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.error <= 1  # not for NaN


def compiled(function: Callable) -> Callable:
    """`jax.jit`; on CPU without LLVM's optimizations, for most of the time is compilation."""
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else {}
    return jax.jit(function, compiler_options=options)


def relative_error(value: Any, expected: Any) -> float:
    """The largest difference as a share of the largest expected value."""
    value, expected = (np.asarray(x, np.float64) for x in (value, expected))
    return float(np.max(np.abs(value - expected)) / max(np.max(np.abs(expected)), 1e-30))


def checked(name: str, errors: Callable[[], Errors]) -> Check:
    """Runs a check.

    Args:
      name: what is checked.
      errors: gives, for each quantity, its error and the tolerance for it.
    """
    begun = time.perf_counter()
    try:
        shares = {key: error / tolerance for key, (error, tolerance) in errors().items()}
        worst = max(shares, key=lambda key: math.inf if np.isnan(shares[key]) else shares[key])
        share = shares[worst]
    except Exception as error:  # a check that cannot run has failed, and the others go on
        lines = str(error).strip().splitlines() or [""]
        worst, share = f"{type(error).__name__}: {lines[0]}", math.inf
    return Check(name, share, worst, time.perf_counter() - begun)
