"""Reports a run's header, progress and scores to people, to trackers and to scripts.

The work directory holds `metrics.jsonl`, TensorBoard's `events.*`, and `run.json`, which says what
the run was made with. Each line of `metrics.jsonl` is one strict JSON object, with null for NaN and
infinity. On a terminal, a progress bar stays below the messages. Elsewhere every report is one line
of plain text for a log file.

A step is the number of updates made so far: step 50 is the state after the fiftieth update.
"""

import contextlib
import datetime
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import rich.box
import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text
from absl import logging
from PIL import Image

from jaxseg.atomic_files import write_text, writing
from jaxseg.errors import OutputError
from jaxseg.reporting.console import print_line, print_table
from jaxseg.reporting.manifest import device_memory, strict_json
from jaxseg.reporting.trackers import TENSORBOARD, open_trackers

LARGEST_PICTURE = 1600  # pixels of the longer side of a picture that is tracked
# How the progress line shows the metrics it knows, in this order. Other metrics are recorded, but
# not shown.
SHOWN: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.3f}".format,
    "learning_rate": "lr {:.1e}".format,
    "step_seconds": "{:.3g} s/step".format,
    "images_per_second": "{:.1f} images/s".format,
    "mfu": "MFU {:.1%}".format,
    "data_share": "data {:.0%}".format,
}


class Report:
    """Reports one run; a context manager that closes its files when the run ends.

    A run that was killed after its last checkpoint leaves records of later steps in
    `metrics.jsonl` and TensorBoard. They are dropped, because those steps are computed again.

    Args:
      workdir: where the records are written, made if it does not exist.
      total_steps: the last step of the run.
      start_step: the step of the state that the run starts or resumes from.
      enabled: whether to report at all, which only process 0 should. Otherwise every method does
        nothing.
      console: where to print; standard output by default.
      track: the trackers (`trackers.open_trackers`).
      name: the name of the run, for trackers that keep many.
      config: the resolved config, for trackers that show it.

    Raises:
      ConfigError: if a tracker refuses.
      OutputError: by every method, if a record cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int,
        start_step: int = 0,
        enabled: bool = True,
        console: rich.console.Console | None = None,
        track: Sequence[str] = (TENSORBOARD,),
        name: str = "run",
        config: Mapping[str, Any] | None = None,
    ):
        self.enabled = enabled
        if not enabled:
            return
        self._total = total_steps
        self.console = console or rich.console.Console()
        self._first: tuple[int, float] | None = None  # step and clock at the first report
        self._live: rich.live.Live | None = None
        self.workdir = workdir = pathlib.Path(workdir)
        path = workdir / "metrics.jsonl"
        with writing(path):
            workdir.mkdir(parents=True, exist_ok=True)
            drop_later_steps(path, start_step)
            self._trackers = open_trackers(track, workdir, name, config or {}, start_step)
            self._jsonl = path.open("a", encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.close(failed=error is not None)
        except OutputError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the first error is the one to end with

    def close(self, failed: bool = False):
        """Stops the progress bar and closes the files.

        Args:
          failed: whether the run ends with an error, for trackers that show it.
        """
        if not self.enabled:
            return
        if self._live:
            self._live.stop()
        with writing(self.workdir), contextlib.ExitStack() as files:
            files.callback(self._jsonl.close)
            for tracker in self._trackers:
                files.callback(tracker.close, failed)

    def header(self, facts: Mapping[str, str]):
        """Prints what is about to run, one line per fact."""
        if self.enabled:
            print_table(self.console, [(name, str(text)) for name, text in facts.items()])

    def message(self, text: str):
        """Prints one line above the progress bar."""
        if self.enabled:
            print_line(self.console, text)

    def train(self, step: int, metrics: Mapping[str, SupportsFloat]):
        """Records the metrics and device memory at `step`, and prints those in `SHOWN`."""
        if not self.enabled:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        memory = device_memory()
        if memory:
            metrics |= {"memory_used": float(memory[0]), "memory_limit": float(memory[1])}
        self._record(step, "train", metrics)
        parts = [show(metrics[name]) for name, show in SHOWN.items() if name in metrics]
        if memory:
            parts.append(f"mem {memory[0] / 1e9:.0f}/{memory[1] / 1e9:.0f} GB")
        if (eta := self._time_left(step)) is not None:
            parts.append(f"eta {datetime.timedelta(seconds=round(eta))}")
        self._progress(step, parts)

    def evaluation(self, step: int, means: Mapping[str, float], iou: Mapping[str, float]):
        """Records the scores at `step`: the means, and the IoU of each class by name."""
        if self.enabled:
            self._record(step, "eval", means, iou=iou)
            self._track(step, "eval_iou", iou)

    def pictures(self, step: int, folder: pathlib.Path):
        """Sends the panels of an evaluation to the trackers, made smaller.

        Args:
          step: the step that was evaluated.
          folder: the panels of the first images, and below `worst` of those with the lowest IoU.
        """
        if not self.enabled:
            return
        first = {f"eval/{file.stem}": file for file in sorted(folder.glob("*.png"))}
        worst = {
            f"eval_worst/{file.stem.partition('_')[0]}": file
            for file in sorted((folder / "worst").glob("*.png"))
        }
        for name, file in (first | worst).items():
            with writing(self.workdir), Image.open(file) as picture:
                picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
                for tracker in self._trackers:
                    tracker.add_image(step, name, np.asarray(picture.convert("RGB")))

    def _record(self, step, kind, metrics, **more):
        with writing(self.workdir / "metrics.jsonl"):
            self._jsonl.write(strict_json({"step": step, "kind": kind, **metrics, **more}) + "\n")
            self._jsonl.flush()  # so that the line survives if the process is killed
        self._track(step, kind, metrics)

    def _track(self, step, group, values):
        finite = {f"{group}/{k}": float(v) for k, v in values.items() if math.isfinite(v)}
        with writing(self.workdir):
            for tracker in self._trackers:
                tracker.add_scalars(step, finite)

    def _time_left(self, step):
        """Returns the seconds to the last step, at the pace since the first report.

        Compilation happens before the first report, which therefore has no pace: None.
        """
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        if step == first_step:
            return None
        return (self._total - step) * (now - first_time) / (step - first_step)

    def _progress(self, step, parts):
        console = self.console
        if not console.is_terminal or console.is_dumb_terminal:
            print_line(console, " · ".join([f"step {step}/{self._total}", *parts]))
            return
        bar = rich.table.Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        bar.add_row(
            rich.progress_bar.ProgressBar(total=self._total, completed=step),
            f"step {step}/{self._total}",
        )
        picture = rich.console.Group(bar, rich.text.Text(" · ".join(parts), style="dim"))
        if self._live is None:
            self._live = rich.live.Live(picture, console=console, refresh_per_second=4)
            self._live.start()
        self._live.update(picture)


def drop_later_steps(path: pathlib.Path, step: int):
    """Removes the lines of a `metrics.jsonl` after `step`, and half-written lines.

    Step 0 removes all lines. The file is replaced atomically, so a process killed here leaves the
    old file or the new one.
    """
    if not path.exists():
        return

    def keep(line):
        try:
            return json.loads(line)["step"] <= step and step > 0
        except (ValueError, KeyError, TypeError):
            return False  # the last line of a run killed while it wrote

    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    write_text(path, "".join(f"{line}\n" for line in lines if keep(line)))
