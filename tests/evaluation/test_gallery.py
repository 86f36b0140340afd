"""The gallery lists images by their scores, and draws the first, the worst and the best."""

import csv

import numpy as np
import pytest

from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.source import find_samples
from jaxseg.errors import CorruptFileError
from jaxseg.evaluation import metrics
from jaxseg.evaluation.gallery import Gallery
from jaxseg.evaluation.per_image import read_per_image
from support.tiny_datasets import HW, write_cityscapes

ROAD, CAR, IGNORE = 0, 13, 255


@pytest.fixture
def samples(tmp_path):
    for index in range(4):
        write_cityscapes(tmp_path / "data", f"ulm_{index:06d}_000019")
    return find_samples("cityscapes", tmp_path / "data", "train")


@pytest.fixture
def counted(tmp_path, samples):
    """The file of counts of random labels and predictions, and their confusion matrices."""
    gallery = Gallery(tmp_path / "out", samples, CITYSCAPES, count=1)
    rng = np.random.default_rng(0)
    matrices = []
    for index in rng.permutation(len(samples)).tolist():
        label, prediction = rng.integers(0, 21, (2, *HW)).astype(np.uint8)  # two are no class
        label[0, :3] = IGNORE
        gallery.add(index, label, prediction)
        matrices.append((index, metrics.confusion_matrix(prediction, label, 19)))
    gallery.close(sum(matrix for _, matrix in matrices))
    return tmp_path / "out/per_image.npz", [
        matrix for _, matrix in sorted(matrices, key=lambda m: m[0])
    ]


def test_counts_of_images_add_up_to_the_scores(counted, samples):
    file, matrices = counted
    counts = read_per_image(file)
    assert counts.images == tuple(str(sample.image) for sample in samples)
    assert counts.classes == CITYSCAPES.classes
    np.testing.assert_array_equal(counts.palette, CITYSCAPES.palette)
    np.testing.assert_array_equal(counts.image_hw, [HW] * len(samples))
    np.testing.assert_array_equal(counts.confusion, sum(matrices))
    areas = (counts.intersection, counts.labeled, counts.predicted)
    for index, matrix in enumerate(matrices):
        np.testing.assert_array_equal([a[index] for a in areas], metrics.class_counts(matrix))
    scores = metrics.compute_scores(sum(matrices))
    iou = metrics.class_iou(*(a.sum(axis=0, dtype=np.int64) for a in areas))
    np.testing.assert_array_equal(iou, scores.iou)


def test_damaged_counts_are_refused(counted, tmp_path):
    file, _ = counted
    with np.load(file) as content:
        arrays = dict(content)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CorruptFileError, match="is not a file of counts per image"):
        read_per_image(file)
    np.savez(file, **arrays | {"labeled": arrays["labeled"][:, 1:]})
    with pytest.raises(CorruptFileError, match=r"labeled has shape \(4, 18\), expected \(4, 19\)"):
        read_per_image(file)
    np.savez(file, **arrays | {"images": np.array([1, "x", [], None], object)})
    with pytest.raises(CorruptFileError, match="allow_pickle"):
        read_per_image(file)
    np.savez(file, **arrays | {"labeled": arrays["labeled"] / 2})
    with pytest.raises(CorruptFileError, match="labeled is float64"):
        read_per_image(file)
    np.save(file.with_suffix(".npy"), arrays["labeled"])
    with pytest.raises(CorruptFileError, match="is not a file of counts"):
        read_per_image(file.with_suffix(".npy"))
    with pytest.raises(CorruptFileError, match="No such file"):
        read_per_image(tmp_path / "nothing.npz")


def test_the_worst_images_come_first_and_those_without_labels_not_at_all(tmp_path, samples):
    gallery = Gallery(tmp_path / "out", samples, CITYSCAPES, count=2)
    prediction = np.full(HW, ROAD, np.uint8)
    half = np.where(np.arange(HW[1]) < HW[1] // 2, ROAD, CAR)
    labels = [prediction, np.full(HW, CAR), np.full(HW, IGNORE), np.broadcast_to(half, HW)]
    total = np.zeros((20, 20), np.int64)
    for index, label in enumerate(labels):
        gallery.add(index, label.astype(np.uint8), prediction)
        total += metrics.confusion_matrix(prediction, label, 19)
    gallery.close(total)
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
        "01_ulm_000000_000019.png",  # the best; the others are among the worst
        "01_ulm_000001_000019.png",
        "02_ulm_000003_000019.png",
        "ulm_000000_000019.png",
        "ulm_000001_000019.png",
    ]
