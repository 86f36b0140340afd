"""Compares ways to train a rare class, on painted street scenes.

python benchmarks/rare_classes.py [--seeds 3] [--steps 600] [--json FILE]

One class of the training labels is thinned: connected regions of it are ignored at random until it
has 0.3 % of the labeled pixels. The labels of the evaluation stay whole. For each seed, a small
InternImage with UPerNet is trained from scratch in each way. The result is the IoU of the class and
the mIoU of each way, as the mean over the seeds and for each seed.
"""

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from jaxseg import configure_cpu
from jaxseg.atomic_files import write_text
from jaxseg.config import load_config
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.synthetic.writer import write_street_scenes
from jaxseg.reporting.manifest import versions

THINNED, RAW_ID, SHARE = "car", 26, 0.003
IMAGE_HW, TRAIN, VAL = (128, 256), 64, 32
WAYS = {
    "cross-entropy": {},
    "class_weight=enet": {"loss.class_weight": "enet"},
    "class_weight=inverse": {"loss.class_weight": "inverse"},
    "class_crop_probability=0.5": {"data.class_crop_probability": 0.5},
    "both: enet and crops": {"loss.class_weight": "enet", "data.class_crop_probability": 0.5},
    "cross-entropy + dice": {"loss.terms": "(('cross_entropy',1.0),('dice',1.0))"},
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    configure_cpu()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_street_scenes(root / "data", train=TRAIN, val=VAL, image_hw=IMAGE_HW)
        share = thin(root / "data/gtFine/train")
        print(f"{THINNED}: {share:.2%} of the labeled pixels of {TRAIN} images", flush=True)
        found = {way: [] for way in options.ways}
        for seed in range(options.seeds):
            for number, way in enumerate(options.ways):
                begun = time.monotonic()
                scores = train(root, root / f"{seed}_{number}", seed, options.steps, WAYS[way])
                found[way].append(scores)
                seconds = time.monotonic() - begun
                print(f"seed {seed}, {way}: {text(scores)} in {seconds:.0f} s", flush=True)
    print(table(found))
    if options.json:
        result = {"share": share, "steps": options.steps, "train_images": TRAIN, "ways": found}
        result |= {"date": datetime.date.today().isoformat(), "machine": platform.machine()}
        write_text(options.json, json.dumps(result | {"versions": versions()}, indent=1) + "\n")


def thin(folder: Path) -> float:
    """Ignores regions of the class at random, and returns the share that it has then."""
    files = sorted(folder.rglob("*_labelIds.png"))
    labels = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
    regions = []
    for number, label in enumerate(labels):
        count, numbered = cv2.connectedComponents((label == RAW_ID).astype(np.uint8))
        regions += [(number, numbered == k) for k in range(1, count)]
    order = np.random.default_rng(0).permutation(len(regions))
    counted = CITYSCAPES.label_formats[-1].train_ids < len(CITYSCAPES.classes)
    total = sum(int(counted[label].sum()) for label in labels)
    left = sum(int((label == RAW_ID).sum()) for label in labels)
    for index in order:
        number, region = regions[index]
        if left - region.sum() >= SHARE * total:
            labels[number][region] = 0  # the raw id "unlabeled", which is ignored
            left -= int(region.sum())
            total -= int(region.sum())
    for file, label in zip(files, labels, strict=True):
        cv2.imwrite(str(file), label)
    return left / total


def train(root: Path, workdir: Path, seed: int, steps: int, changes: dict) -> dict[str, float]:
    """Trains once and returns the IoU of the class and the mIoU of the last evaluation."""
    # Imported here, so that the environment is set first.
    from jaxseg.train import train as run

    settings = {
        "data.root": root / "data",
        "data.scale_wh": "256,128",
        "data.crop_hw": "128,128",
        "data.test_scale_wh": "256,128",
        "data.workers": 0,
        "model.backbone.channels": 16,
        "model.backbone.depths": "2,2,4,2",
        "model.backbone.groups": "2,4,8,16",
        "model.decode_head.channels": 32,
        "model.auxiliary_head.channels": 16,
        "init": "",
        "seed": seed,
        "steps": steps,
        "batch_size": 8,
        "optim.lr": 1e-3,
        "optim.warmup_steps": 50,
        "eval.every_steps": steps,
        "eval.mask_absent_classes": True,
        "eval.pictures": 1,
        "checkpoint.every_steps": steps,
        "log_steps": 100,
        "track": "",
    }
    config = load_config("configs/cityscapes.py:upernet_internimage_t", settings | changes)
    run(config, workdir)
    lines = (workdir / "per_class.csv").read_text().splitlines()
    ious = {line.split(",")[0]: line.split(",")[1] for line in lines[1:]}
    miou = json.loads((workdir / "metrics.json").read_text())["mIoU"]
    return {"iou": float(ious[THINNED]), "miou": miou}


def text(scores: dict[str, float]) -> str:
    return f"IoU of {THINNED} {100 * scores['iou']:.1f}, mIoU {100 * scores['miou']:.1f}"


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Formats the means over the seeds as a Markdown table."""
    lines = [f"| way | IoU of {THINNED} | mIoU | each seed |", "|---|---|---|---|"]
    for way, runs in found.items():
        means = [100 * statistics.mean(run[key] for run in runs) for key in ("iou", "miou")]
        each = ", ".join(f"{100 * run['iou']:.1f} / {100 * run['miou']:.1f}" for run in runs)
        lines.append(f"| {way} | {means[0]:.1f} | {means[1]:.1f} | {each} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
