"""Times the steps between two log lines."""

import contextlib
import time


class StepTimer:
    """Times the steps between two log lines."""

    def __init__(self):
        self._begin()

    def _begin(self):
        self._started, self._waited, self._steps, self._replaced = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self):
        """What happens inside is waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def count(self, replaced: int):
        """Counts a step, in whose batch so many samples were replaced."""
        self._steps += 1
        self._replaced += int(replaced)

    def close(self, batch_size: int) -> dict[str, float]:
        """The numbers of this window; the next one begins."""
        elapsed = time.perf_counter() - self._started
        numbers = {
            "step_seconds": elapsed / self._steps,
            "images_per_second": batch_size * self._steps / elapsed,
            "data_share": self._waited / elapsed,
        }
        if self._replaced:
            numbers["replaced_samples"] = self._replaced
        self._begin()
        return numbers
