"""Runs one check of the selftest: compares errors with tolerances and finds the worst one."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Errors = dict[str, tuple[float, float]]  # (error, tolerance) of each quantity


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: what was checked.
      error: the largest ratio of error to tolerance. The check passes up to 1.
      worst: the quantity with that error, or the exception that was raised.
      seconds: how long the check took.
    """

    name: str
    error: float
    worst: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Returns whether all errors are within their tolerances."""
        return self.error <= 1  # false for NaN


def compiled(function: Callable) -> Callable:
    """Returns a jitted function, compiled without LLVM's optimizations on CPU.

    On CPU, compilation takes most of the time.
    """
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else {}
    return jax.jit(function, compiler_options=options)


def relative_error(value: Any, expected: Any) -> float:
    """Returns the largest absolute difference divided by the largest absolute expected value."""
    value, expected = (np.asarray(x, np.float64) for x in (value, expected))
    return float(np.max(np.abs(value - expected)) / max(np.max(np.abs(expected)), 1e-30))


def checked(name: str, errors: Callable[[], Errors]) -> Check:
    """Runs a check and measures its time.

    A check that raises an exception has failed.

    Args:
      name: what is checked.
      errors: returns the (error, tolerance) of each quantity.
    """
    begun = time.perf_counter()
    try:
        shares = {key: error / tolerance for key, (error, tolerance) in errors().items()}
        worst = max(shares, key=lambda key: math.inf if np.isnan(shares[key]) else shares[key])
        share = shares[worst]
    except Exception as error:  # a check that cannot run has failed; the others still run
        lines = str(error).strip().splitlines() or [""]
        worst, share = f"{type(error).__name__}: {lines[0]}", math.inf
    return Check(name, share, worst, time.perf_counter() - begun)
