"""What a run tells: a header, progress, scores; for people, for TensorBoard and for scripts.

In the work directory: `metrics.jsonl` (one strict JSON object per line; what is not a number is
null), TensorBoard's `events.*`, and `run.json`, which says what the run was made with. On a
terminal a progress bar is kept below the messages; elsewhere every report is one line of plain
text, fit for a log file.

A step is counted by the number of updates made: step 50 is the state after the fiftieth.
"""

import csv
import datetime
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text
import tensorboardX
from PIL import Image

from jaxseg.evaluation import charts
from jaxseg.evaluation.metrics import Scores

# What the line of progress says about the metrics it knows, in this order. All others are
# recorded and not shown.
SHOWN: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.3f}".format,
    "learning_rate": "lr {:.1e}".format,
    "step_seconds": "{:.3g} s/step".format,
    "images_per_second": "{:.1f} images/s".format,
    "data_share": "data {:.0%}".format,
}
PACKAGES = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Report:
    """Tells of one run; a context manager, to be closed when the run ends.

    `start_step` is the step of the state that the run goes on from. What `metrics.jsonl` and
    TensorBoard hold of later steps was written by a run that was killed after its last
    checkpoint; it is dropped, since those steps are about to be made again.

    Only process 0 should be `enabled`; on the others every method does nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int,
        start_step: int = 0,
        enabled: bool = True,
        console: rich.console.Console | None = None,
    ):
        self.enabled = enabled
        if not enabled:
            return
        self._total = total_steps
        self._console = console or rich.console.Console()
        self._first: tuple[int, float] | None = None  # step and clock at the first progress
        self._live: rich.live.Live | None = None
        self.workdir = workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        drop_later_steps(path, start_step)
        self._jsonl = path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(
            str(workdir), purge_step=start_step + 1 if start_step else 0, flush_secs=30
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        if self.enabled:
            if self._live:
                self._live.stop()
            self._jsonl.close()
            self._board.close()

    def header(self, facts: Mapping[str, str]):
        """What is about to run, one line per fact."""
        if self.enabled:
            _print_table(self._console, [(name, str(text)) for name, text in facts.items()])

    def message(self, text: str):
        """One line for the reader; the progress bar stays below it."""
        if self.enabled:
            _print(self._console, text)

    def train(self, step: int, metrics: Mapping[str, float]):
        """Progress at `step`: any metrics (see `SHOWN` for the ones shown), and device memory."""
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
        eta = self._time_left(step, metrics.get("step_seconds", math.nan))
        if math.isfinite(eta):
            parts.append(f"eta {datetime.timedelta(seconds=round(eta))}")
        self._progress(step, parts)

    def evaluation(self, step: int, scores: Scores, classes: Sequence[str]):
        """The scores at `step`, as a table of all classes."""
        if not self.enabled:
            return
        print_evaluation(scores, classes, self._console)
        iou = dict(zip(classes, scores.iou.tolist(), strict=True))
        self._record(step, "eval", _means(scores), iou=iou)
        self._to_board(step, "eval_iou", iou)

    def images(self, tag: str, step: int, picture: np.ndarray):
        """A picture, RGB uint8 [h, w, 3], for TensorBoard."""
        if self.enabled:
            self._board.add_image(tag, picture, step, dataformats="HWC")

    def _record(self, step, kind, metrics, **more):
        self._jsonl.write(_strict_json({"step": step, "kind": kind, **metrics, **more}) + "\n")
        self._jsonl.flush()  # the line survives when the process is killed
        self._to_board(step, kind, metrics)

    def _to_board(self, step, group, values):
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(f"{group}/{name}", value, step)

    def _time_left(self, step, step_seconds):
        """Seconds to the last step at the pace since the first report (compiling is before it)."""
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        if step > first_step:
            step_seconds = (now - first_time) / (step - first_step)
        return (self._total - step) * step_seconds

    def _progress(self, step, parts):
        console = self._console
        if not console.is_terminal or console.is_dumb_terminal:
            _print(console, " · ".join([f"step {step}/{self._total}", *parts]))
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


def print_evaluation(
    scores: Scores, classes: Sequence[str], console: rich.console.Console | None = None
):
    """The scores of every class in per cent, then the means and over how many they go."""
    columns = (scores.iou, scores.acc, scores.dice)
    rows = [(name, *map(_percent, values)) for name, *values in zip(classes, *columns, strict=True)]
    console = console or rich.console.Console()
    _print_table(console, rows, head=("class", "IoU", "accuracy", "Dice"))
    means = {name: _percent(value, "undefined") for name, value in scores.reported().items()}
    _print(
        console,
        f"aAcc {means['aAcc']} · "
        f"mIoU {means['mIoU']} ({scores.iou_classes} of {len(classes)} classes) · "
        f"mAcc {means['mAcc']} ({scores.acc_classes} of {len(classes)} classes) · "
        f"mDice {means['mDice']} · mFscore {means['mFscore']}",
    )
    if absent := [name for name, pixels in zip(classes, scores.pixels, strict=True) if not pixels]:
        _print(console, f"not in the labels: {', '.join(absent)}")
    if scores.outside > 0:
        _print(
            console,
            f"{scores.outside:.2%} of the labelled pixels were predicted as outputs without a class"
            " and count as errors (config.eval.mask_absent_classes leaves these outputs out)",
        )


def write_evaluation(directory: str | os.PathLike, scores: Scores, classes: Sequence[str]):
    """Writes the scores of a dataset.

    `metrics.json` (rounded as reported), `per_class.csv` (0..1; empty: undefined), and as charts
    `confusion.png` and `per_class.png`.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    means = _means(scores) | {
        "classes": len(classes),
        "classes_in_mIoU": scores.iou_classes,
        "classes_in_mAcc": scores.acc_classes,
        "pixels": int(scores.pixels.sum()),
    }
    _write_atomically(directory / "metrics.json", _strict_json(means, indent=2) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("class", "iou", "acc", "dice", "pixels"))
    columns = (scores.iou, scores.acc, scores.dice)
    for name, *values, pixels in zip(classes, *columns, scores.pixels.tolist(), strict=True):
        numbers = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        writer.writerow((name, *numbers, pixels))
    _write_atomically(directory / "per_class.csv", table.getvalue())
    for name, chart in (
        ("confusion.png", charts.confusion_chart(scores.confusion, classes)),
        ("per_class.png", charts.class_bars(scores.iou, classes)),
    ):
        Image.fromarray(chart).save(directory / name)


def manifest(workdir: str | os.PathLike, facts: Mapping[str, Any]):
    """Writes `run.json`: when, where and with which versions this was run, and the facts given.

    A run that goes on keeps what it was begun with and adds to its list "resumed".
    """
    path = pathlib.Path(workdir) / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "git": git_revision(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        **facts,
    }
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        content = begun | {"resumed": [*begun.get("resumed", ()), content]}
    _write_atomically(path, _strict_json(content, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision(file: str | os.PathLike = __file__) -> str | None:
    """The commit that `file` belongs to, `-dirty` when the tree has changed since; else None."""
    directory, name = os.path.split(file)

    def git(*arguments):
        command = ["git", "-C", directory, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie within a repository that is not jaxseg's.
        git("ls-files", "--error-unmatch", name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def device_memory() -> tuple[int, int] | None:
    """Bytes (used at the peak, available) of the fullest local device; None on CPU: unknown."""
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    used = [(s["peak_bytes_in_use"], s["bytes_limit"]) for s in known if "bytes_limit" in s]
    return max(used, default=None)


def drop_later_steps(path: pathlib.Path, step: int):
    """Removes the lines of a `metrics.jsonl` after `step` (all, for 0), whatever was half-written.

    The file is replaced in one go: a run killed here leaves it as it was, or done.
    """
    if not path.exists():
        return

    def keep(line):
        try:
            return json.loads(line)["step"] <= step and step > 0
        except (ValueError, KeyError, TypeError):
            return False  # the last line of a run killed while it wrote

    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    _write_atomically(path, "".join(f"{line}\n" for line in lines if keep(line)))


def _write_atomically(path, text):
    """The reader finds the old file or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _strict_json(content, indent=None):
    """JSON as the standard has it, which knows neither NaN nor infinity: both become null."""

    def plain(value):
        if isinstance(value, Mapping):
            return {str(name): plain(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return json.dumps(plain(content), indent=indent, allow_nan=False, ensure_ascii=False)


def _means(scores):
    """The reported numbers; rounded again, which only turns 0.5417000000000001 into 0.5417."""
    return {name: round(value, 4) for name, value in scores.reported().items()}


def _percent(value, undefined="absent"):
    return undefined if math.isnan(value) else f"{100 * value:.2f}"


def _print(console, text):
    """Prints a line as it is: not wrapped, brackets are no markup, and no character is fatal."""
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)


def _print_table(console, rows, head=None):
    """A drawn table on a terminal; elsewhere columns aligned by spaces. Numbers to the right."""
    if console.is_terminal:
        table = rich.table.Table(box=rich.box.ROUNDED, show_header=head is not None)
        for number, name in enumerate(head or ("", "")):
            justify = "right" if head and number else "left"
            table.add_column(name, justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(rich.text.Text(cell) for cell in row))
        console.print(table)
        return
    rows = [head, *rows] if head else rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        cells = [cell.rjust(w) if head else cell for cell, w in zip(cells, widths[1:], strict=True)]
        _print(console, "  ".join([name.ljust(widths[0]), *cells]))
