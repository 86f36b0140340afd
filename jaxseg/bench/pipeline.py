"""Measures the input pipeline of a recipe: training batches from files, as training reads them."""

import contextlib
import os
import pathlib
import platform
import time
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxseg.bench.measurement import Measurement
from jaxseg.bench.timing import summarize
from jaxseg.data.pipeline import training_batches
from jaxseg.reporting.manifest import versions
from jaxseg.training.step_timer import StepTimer


def measure_pipeline(
    config: ConfigDict,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    batch: int | None = None,
    warmup: int = 3,
    steps: int = 20,
    step_seconds: float = 0.0,
) -> Measurement:
    """Takes batches as training does, and measures how fast they come.

    W workers begin together, so batches come W at a time. A timed step therefore takes W batches,
    and counts as one batch that took a W-th of the time.

    Args:
      config: the resolved config.
      recipe: its name, for the result.
      overrides: the settings that differ from the recipe, for the result.
      batch: images in a batch; by default `config.batch_size`.
      warmup: steps before the first that is timed.
      steps: steps that are timed.
      step_seconds: how long each batch is held before the next is taken, as by a train step on an
        accelerator. The share of waiting is part of the result if this is not 0.

    Raises:
      DataError: if the dataset is missing, incomplete or damaged.
    """
    batch, together = batch or config.batch_size, max(config.data.workers, 1)
    batches = training_batches(config.data, batch_size=batch, seed=config.seed)
    timer, rounds = StepTimer(), []
    with contextlib.closing(batches):
        for _ in range(warmup + steps):
            for _ in range(together):
                with timer.waiting():
                    taken = next(batches)
                timer.count(replaced=int(taken["replaced"].sum()))
                time.sleep(step_seconds)
            rounds.append(timer.close(batch))
    seconds = summarize([numbers["step_seconds"] for numbers in rounds[warmup:]])
    waited = sum(n["data_share"] * n["step_seconds"] for n in rounds[warmup:])
    return Measurement(
        what="data",
        recipe=recipe,
        overrides=list(overrides),
        device=processor(),
        devices=len(os.sched_getaffinity(0)),
        batch=batch,
        image_hw=tuple(config.data.crop_hw),
        images_per_second=batch / seconds.p50,
        seconds=seconds,
        data_share=waited / (seconds.mean * seconds.steps) if step_seconds else None,
        workers=config.data.workers,
        versions=versions(),
    )


def processor() -> str:
    """Returns the name of the processor."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()
