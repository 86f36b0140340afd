"""A trace of some steps of a run by JAX's profiler, for xprof or TensorBoard."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict


class Profile:
    """Traces `config.steps` steps of a run, from its step `config.after` on; a context manager.

    Every process writes its own part of the trace into `directory`.
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
        """To be called after so many steps of this run, with what the last one computes."""
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
            self._say(f"profile in {self._directory}")
