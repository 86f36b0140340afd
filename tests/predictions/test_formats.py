"""Every format holds the prediction, and the readers of COCO take theirs."""

import contextlib
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jaxseg.data import picture_files
from jaxseg.inference.segments import Segments
from jaxseg.predictions import formats
from jaxseg.predictions.formats import Entry, Prediction

NAMES = ("road", "car", "tree")
PALETTE = np.array([[128, 64, 128], [0, 0, 142], [107, 142, 35]], np.uint8)
LOOK = formats.Look(NAMES, PALETTE)


def prediction_of(hw, seed=0, **parts):
    rng = np.random.default_rng(seed)
    classes = np.kron(rng.integers(0, 3, hw), np.ones((4, 4))).astype(np.uint8)
    image = rng.integers(0, 256, (*classes.shape, 3)).astype(np.uint8)
    return Prediction(image, classes, **parts)


def segments_of(hw):
    """Three segments, two of which are of one class, and pixels of none."""
    masks = np.zeros((3, *hw), bool)
    masks[0, 5:20, 3:9], masks[1, :, 20:], masks[2, 25:, :10] = True, True, True
    return Segments(masks, np.array([1, 0, 1]), np.array([0.95, 0.9, 0.85], np.float32))


def write(folder, format_name, predictions, look=LOOK):
    """Writes predictions by name; the last is written first, as threads may do."""
    (writer,) = formats.make_writers([format_name, format_name], folder, look)
    entries = [
        (Entry(number, pathlib.Path(name), f"{name}.jpg"), prediction)
        for number, (name, prediction) in enumerate(predictions.items())
    ]
    files = [writer.write(*entry) for entry in reversed(entries)]
    writer.finish()
    return files[::-1]


def read(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_pictures_and_arrays_hold_the_classes(tmp_path):
    prediction = prediction_of((6, 9))
    files = {name: write(tmp_path, name, {"x/a": prediction})[0] for name in formats.FORMATS}
    np.testing.assert_array_equal(read(files["png"]), prediction.classes)
    np.testing.assert_array_equal(read(files["color"]), PALETTE[prediction.classes])
    assert read(files["overlay"]).shape[2] == 3
    with np.load(files["npz"]) as arrays:
        assert arrays.files == ["classes"]
        np.testing.assert_array_equal(arrays["classes"], prediction.classes, strict=True)
    pictures = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path)) for path in pictures} == {
        *("x/a_classes.png", "x/a_overlay.png", "x/a_color.png", "x/a.npz"),
        *("predictions.json", "panoptic/x/a.png", "panoptic.json"),
    }


def test_alpha_is_the_opacity_of_an_overlay(tmp_path):
    prediction = prediction_of((128, 128))
    for alpha, expected in ((0.0, prediction.image), (1.0, PALETTE[prediction.classes])):
        look = formats.Look(NAMES, PALETTE, alpha)
        (file,) = write(tmp_path, "overlay", {"a": prediction}, look)
        np.testing.assert_array_equal(read(file)[:512, :512], expected)


def test_probabilities_are_stored_as_float16(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), (24, 36)).astype(np.float32)
    (file,) = write(tmp_path, "npz", {"a": prediction_of((6, 9), probabilities=probabilities)})
    with np.load(file) as arrays:
        assert arrays["probabilities"].dtype == np.float16
        np.testing.assert_allclose(arrays["probabilities"], probabilities, atol=5e-4)


def coco_of(tmp_path, images):
    """COCO's dataset of some images (id, file name, (height, width)), without annotations."""
    file = tmp_path / "dataset.json"
    rows = [
        {"id": number, "file_name": name, "height": height, "width": width}
        for number, name, (height, width) in images
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    content = {"images": rows, "annotations": [], "categories": categories, "info": {}}
    file.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(file))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("with_segments", [False, True], ids=["class map", "segments"])
def test_pycocotools_reads_the_regions_of_all_images(tmp_path, with_segments):
    segments = segments_of((32, 40)) if with_segments else None
    predictions = {
        name: prediction_of((8, 10), seed, segments=segments)
        for seed, name in enumerate(("b", "x/a"))
    }
    files = write(tmp_path, "rle", predictions)
    assert files == [tmp_path / "predictions.json"] * 2
    dataset = coco_of(tmp_path, [(1, "b.jpg", (32, 40)), (2, "x/a.jpg", (32, 40))])
    with contextlib.redirect_stdout(io.StringIO()):
        results = dataset.loadRes(str(files[0]))
    for image_id, (name, prediction) in enumerate(predictions.items(), 1):
        found = results.loadAnns(results.getAnnIds(imgIds=[image_id]))
        assert {row["file_name"] for row in found} == {f"{name}.jpg"}
        masks = np.array([results.annToMask(row) for row in found], bool)
        categories = [row["category_id"] for row in found]
        assert [row["category_name"] for row in found] == [NAMES[k] for k in categories]
        if segments:
            np.testing.assert_array_equal(masks, segments.masks)
            assert categories == segments.classes.tolist()
            np.testing.assert_allclose([row["score"] for row in found], segments.confidences)
        else:
            np.testing.assert_array_equal(np.argmax(masks, axis=0), prediction.classes)
            assert categories == [0, 1, 2]
    for row in json.loads(files[0].read_text()):
        assert row["area"] == coco_mask.area(row["segmentation"])
        assert row["bbox"] == coco_mask.toBbox(row["segmentation"]).tolist()


def test_with_probabilities_the_score_of_a_region_is_their_mean(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), (24, 36)).astype(np.float32)
    prediction = prediction_of((6, 9), probabilities=probabilities)
    (file,) = write(tmp_path, "rle", {"a": prediction})
    for row in json.loads(file.read_text()):
        inside = prediction.classes == row["category_id"]
        mean = probabilities[inside, row["category_id"]].mean()
        assert row["score"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("000000000139", "x/000000000285"), [139, 285]),
        (("a", "000000000285"), [1, 2]),
        (("x/7", "y/007"), [1, 2]),
    ],
)
def test_numbers_as_names_are_the_ids_of_images(tmp_path, names, ids):
    write(tmp_path, "panoptic", {name: prediction_of((2, 2)) for name in names})
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == ids
    assert [annotation["image_id"] for annotation in content["annotations"]] == ids
    assert [image["file_name"] for image in content["images"]] == [f"{name}.jpg" for name in names]


def write_panoptic(tmp_path, with_segments):
    segments = segments_of((32, 40)) if with_segments else None
    predictions = {
        name: prediction_of((8, 10), seed, segments=segments) for seed, name in enumerate("ab")
    }
    write(tmp_path, "panoptic", predictions)
    return predictions, json.loads((tmp_path / "panoptic.json").read_text())


@pytest.mark.parametrize("with_segments", [False, True], ids=["class map", "segments"])
def test_panoptic_pictures_hold_the_ids_of_their_segments(tmp_path, with_segments):
    """By the published format: a pixel's id is r + 256 g + 256² b, and 0 is no segment."""
    predictions, content = write_panoptic(tmp_path, with_segments)
    assert content["categories"][1] == {
        **{"id": 1, "name": "car", "supercategory": "car"},
        **{"isthing": 0, "color": [0, 0, 142]},
    }
    for annotation, prediction in zip(content["annotations"], predictions.values(), strict=True):
        ids = read(tmp_path / "panoptic" / annotation["file_name"]).astype(int) @ [1, 256, 256**2]
        rows = annotation["segments_info"]
        assert set(np.unique(ids)) - {0} == {row["id"] for row in rows}
        for row in rows:
            assert row["area"] == np.sum(ids == row["id"])
            y, x = np.nonzero(ids == row["id"])
            corner = [row["bbox"][0] + row["bbox"][2] - 1, row["bbox"][1] + row["bbox"][3] - 1]
            assert [x.min(), y.min(), x.max(), y.max()] == row["bbox"][:2] + corner
            assert row["iscrowd"] == 0
        if with_segments:
            assert [row["category_id"] for row in rows] == [1, 0, 1]
            assert np.sum(ids == 0) == np.sum(~segments_of((32, 40)).masks.any(axis=0))
        else:
            by_id = np.zeros(len(rows) + 1, int)
            by_id[[row["id"] for row in rows]] = [row["category_id"] for row in rows]
            np.testing.assert_array_equal(by_id[ids], prediction.classes)


def test_ids_above_255_take_the_second_channel(tmp_path):
    masks = np.eye(400, dtype=bool).reshape(400, 20, 20)
    segments = Segments(masks, np.zeros(400, int), np.ones(400, np.float32))
    write(tmp_path, "panoptic", {"a": prediction_of((5, 5), segments=segments)})
    ids = read(tmp_path / "panoptic/a.png").astype(int) @ [1, 256, 256**2]
    np.testing.assert_array_equal(ids.ravel(), np.arange(1, 401))


def test_a_later_prediction_of_the_folder_skips_all_results(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("a.jpg", "x/b.jpg"):
        (tmp_path / name).touch()
    for out in (tmp_path, tmp_path / "masks/new"):
        for name in formats.FORMATS:
            write(out, name, {"a": prediction_of((2, 2)), "x/b": prediction_of((2, 2))})
    found = picture_files.find(tmp_path)
    assert found.names == ["a.jpg", "x/b.jpg"]
    assert {skipped.reason for skipped in found.skipped} == {"a result of jaxseg predict"}
