"""Work directories of a few images, written by the code that a run uses, without a run."""

import dataclasses
import json

import numpy as np

from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.source import find_samples
from jaxseg.evaluation import metrics
from jaxseg.evaluation.gallery import Gallery
from jaxseg.evaluation.results import write_evaluation
from support.tiny_datasets import HW, write_cityscapes

CLASSES = ("road", "car", "tree & <script>alert(1)</script>")
COLORS = np.array([[128, 64, 128], [0, 0, 142], [107, 142, 35]], np.uint8)


def write_images(root, count=6):
    """Images of HW for `write_run`; returns their samples."""
    for index in range(count):
        write_cityscapes(root, f"ulm_{index:06d}_000019")
    return find_samples("cityscapes", root, "train")


def label_maps(count, classes, seed=0):
    """A random label for each image; one pixel in ten is ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, *HW))
    return np.where(rng.random(labels.shape) < 0.1, 255, labels).astype(np.uint8)


def class_maps(labels, classes, errors, seed=1):
    """The labels, with random classes in a share `errors` of the pixels."""
    rng = np.random.default_rng(seed)
    wrong = rng.integers(0, classes, labels.shape)
    right = np.where(labels == 255, 0, labels)
    return np.where(rng.random(labels.shape) < errors, wrong, right).astype(np.uint8)


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )


def write_run(
    path, samples, labels, *, errors, lr=0.01, classes=CLASSES, pictures=2, step=20, seed=1
):
    """A work directory with a log, an evaluation at `step`, a config and `run.json`.

    Returns:
      The scores of the evaluation.
    """
    dataset = dataclasses.replace(CITYSCAPES, classes=classes, palette=COLORS)
    gallery = Gallery(path / f"predictions/step_{step:06d}", samples, dataset, pictures)
    predictions = class_maps(labels, len(classes), errors, seed)
    confusion = metrics.confusion_matrix(predictions, labels, len(classes))
    for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        gallery.add(index, label, prediction)
    gallery.close(confusion)
    scores = metrics.compute_scores(confusion)
    write_evaluation(path, scores, classes, {"step": step})
    write_lines(
        path / "metrics.jsonl",
        {"step": 1, "kind": "train", "loss": 4.0, "learning_rate": 0.0},
        {"step": 10, "kind": "train", "loss": None, "learning_rate": lr},
        {"step": 20, "kind": "train", "loss": 2.0, "learning_rate": lr},
        {"step": step, "kind": "eval", "mIoU": round(scores.miou, 4), "iou": {}},
    )
    config = {"optim": {"lr": lr}, "data": {"dataset": "cityscapes"}, "variant": "<b>tiny</b>"}
    (path / "config.json").write_text(json.dumps(config))
    manifest = {"started": "2026-01-01T00:00:00+00:00", "versions": {"jax": "0.10.2"}}
    manifest |= {"devices": ["TPU v5e"] * 4, "command": ["jaxseg", "train"]}
    (path / "run.json").write_text(json.dumps(manifest))
    return scores
