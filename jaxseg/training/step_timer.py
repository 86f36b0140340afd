"""Measures time per step and time spent waiting for data."""

import contextlib
import time


class StepTimer:
    """Measures the steps between two log lines."""

    def __init__(self):
        self._begin()

    def _begin(self):
        self._started, self._waited, self._steps, self._replaced = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self):
        """Counts the time inside this context as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def count(self, replaced: int):
        """Counts a step.

        Args:
          replaced: number of samples of its batch that were replaced.
        """
        self._steps += 1
        self._replaced += int(replaced)

    def close(self, batch_size: int, seconds_at_peak: float | None = None) -> dict[str, float]:
        """Returns the numbers since the last call and starts anew.

        Args:
          batch_size: images per step, over all devices.
          seconds_at_peak: the time of a step at the peak of the devices, or None if not known.

        Returns:
          `step_seconds`, `images_per_second` and `data_share`, the share of the time that was
          spent waiting for data. If the peak is known, also `mfu`, and if samples were replaced,
          `replaced_samples`.
        """
        elapsed = time.perf_counter() - self._started
        numbers = {
            "step_seconds": elapsed / self._steps,
            "images_per_second": batch_size * self._steps / elapsed,
            "data_share": self._waited / elapsed,
        }
        if seconds_at_peak is not None:
            numbers["mfu"] = seconds_at_peak / numbers["step_seconds"]
        if self._replaced:
            numbers["replaced_samples"] = self._replaced
        self._begin()
        return numbers
