"""Trains the smallest recipe on CamVid from scratch, and scores it on the test images.

python benchmarks/camvid.py --root DIR [--seeds 0 1 2] [--json FILE] [--config.KEY=VALUE …]

DIR holds images/{train,val,test}, masks/{train,val,test} and names.txt, with 11 classes and void
(367, 101 and 233 images of 360 x 480 pixels in the common split). Training sees the 367 images
alone. The weights of the last step are scored on the 233 test images, which nothing was chosen by:
in one view, and as the mean of six (three sizes, each also mirrored).

Where JAX runs on CPUs, it gets two virtual devices, each with half of the batch. One does its small
operations while the other one waits.

A run in SEED of --workdir goes on where it stopped, and one that has ended is not trained again.
The time is that of the steps with their compilation, from the log, without the evaluations.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import tempfile
from pathlib import Path

from jaxseg import configure_cpu
from jaxseg.atomic_files import write_text
from jaxseg.config import load_config
from jaxseg.report.records import read_json_lines
from jaxseg.reporting.manifest import versions

VIEWS = {
    "one view": {},
    "six views": {"eval.ss.ratios": "0.75,1.0,1.25", "eval.ss.flip": "True"},
}
DEVICES = "--xla_force_host_platform_device_count=2"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--recipe", default="configs/custom.py:tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workdir", type=Path, help="kept afterwards; default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options, overrides = parser.parse_known_args()
    os.environ["XLA_FLAGS"] = f"{DEVICES} {os.environ.get('XLA_FLAGS', '')}"
    configure_cpu()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or Path(temporary)
        runs = [
            measure(options.recipe, options.root, workdir / str(seed), [*overrides, seed_of(seed)])
            for seed in options.seeds
        ]
    result = {
        "recipe": options.recipe,
        "settings": overrides,
        "runs": runs,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": versions(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        write_text(options.json, text + "\n")


def seed_of(seed: int) -> str:
    return f"--config.seed={seed}"


def measure(recipe: str, root: Path, workdir: Path, overrides: list[str]) -> dict:
    """Trains to the last step and returns the time in seconds and the scores."""
    # Imported here, so that the environment is set first.
    from jaxseg.evaluate import evaluate_checkpoint
    from jaxseg.train import train

    data = [f"--config.data.root={root}", f"--config.data.classes={root / 'names.txt'}"]
    config = load_config(recipe, [*data, *overrides])
    last = workdir / "checkpoints" / str(config.steps)
    if not last.exists():
        train(config, workdir)
    if not last.exists():
        raise SystemExit(f"{workdir}: stopped before the last step; the same command goes on")
    saved = json.loads((workdir / "config.json").read_text())

    def score(split, views):
        folder = workdir / f"{split} in {views}".replace(" ", "_")
        scores = evaluate_checkpoint(
            last, folder, overrides={"data.val_split": split, **VIEWS[views]}
        )
        with (folder / "per_class.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            "miou": round(scores.miou, 4),
            "aacc": round(scores.aacc, 4),
            "iou": {row["class"]: float(row["iou"]) if row["iou"] else None for row in rows},
        }

    return {
        "seed": config.seed,
        "steps": saved["steps"],
        "batch_size": saved["batch_size"],
        "crop_hw": saved["data"]["crop_hw"],
        "training_seconds": round(seconds_of_steps(workdir)),
        **{split: {views: score(split, views) for views in VIEWS} for split in ("val", "test")},
    }


def seconds_of_steps(workdir: Path) -> float:
    """Sums the times of the steps in a run's log, also of those that were made again."""
    log_steps = json.loads((workdir / "config.json").read_text())["log_steps"]
    seconds, previous = 0.0, 0
    for _, line in read_json_lines(workdir / "metrics.jsonl"):
        if line["kind"] == "train":
            # Each start logs its first step alone, with the compilation.
            first = line["step"] % log_steps != 0 or line["step"] <= previous
            seconds += line["step_seconds"] * (1 if first else line["step"] - previous)
            previous = line["step"]
    return seconds


if __name__ == "__main__":
    main()
