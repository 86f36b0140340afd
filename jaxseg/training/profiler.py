"""Traces some steps of a run with JAX's profiler, for xprof or TensorBoard."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict


class Profile:
    """Traces `config.steps` steps of a run, after its first `config.after` steps.

    This is a context manager, which ends the trace at its exit. Every process writes its own part
    of the trace into `directory`.

    Args:
      config: `config.profile`, with `steps` and `after`. With 0 steps, nothing is traced.
      directory: where to write the trace.
      say: prints a message when the trace is written.
    """

    def __init__(self, config: ConfigDict, directory: pathlib.Path, say: Callable[[str], None]):
        self._steps, self._after = config.steps, config.after
        self._directory, self._say = directory, say
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_):
        self._stop()

    def after(self, steps: int, state: Any):
        """Starts or ends the trace where it is due. Must be called after every step.

        Args:
          steps: number of steps this process has made since it started or resumed.
          state: the outputs of the last step, to wait for.
        """
        if self._steps and steps == self._after:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._running = True
        elif steps == self._after + self._steps:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self):
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"profile in {self._directory.name}/ of the work directory")
