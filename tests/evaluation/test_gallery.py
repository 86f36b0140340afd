"""The gallery lists images by their scores and draws the first and the worst."""

import csv

import numpy as np
import pytest

from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.source import find_samples
from jaxseg.evaluation.gallery import Gallery
from support.tiny_datasets import HW, write_cityscapes

ROAD, CAR, IGNORE = 0, 13, 255


@pytest.fixture
def samples(tmp_path):
    for index in range(4):
        write_cityscapes(tmp_path / "data", f"ulm_{index:06d}_000019")
    return find_samples("cityscapes", tmp_path / "data", "train")


def test_the_worst_images_come_first_and_those_without_labels_not_at_all(tmp_path, samples):
    gallery = Gallery(tmp_path / "out", samples, CITYSCAPES, count=2)
    prediction = np.full(HW, ROAD, np.uint8)
    half = np.where(np.arange(HW[1]) < HW[1] // 2, ROAD, CAR)
    labels = [prediction, np.full(HW, CAR), np.full(HW, IGNORE), np.broadcast_to(half, HW)]
    for index, label in enumerate(labels):
        gallery.add(index, label.astype(np.uint8), prediction)
    gallery.close()
    with (tmp_path / "out" / "images.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "iou", "acc"],
        [str(samples[1].image), "0.000000", "0.000000"],
        [str(samples[3].image), "0.250000", "0.500000"],  # of road one half, of car nothing
        [str(samples[0].image), "1.000000", "1.000000"],
    ]
    drawn = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert drawn == [
        "01_ulm_000001_000019.png",
        "02_ulm_000003_000019.png",
        "ulm_000000_000019.png",
        "ulm_000001_000019.png",
    ]
