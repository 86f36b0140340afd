"""Labels that do not fit: each gets a message that says what is wrong, and where."""

import cv2
import numpy as np
import pytest

from jaxseg.data.samples import read_sample
from jaxseg.data.source import trained_on
from jaxseg.errors import DataError
from support.label_exports import COCO, one_image, shape, write_coco, write_labelme
from support.tiny_datasets import custom_config

# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

NAMES = ("cat", "dog")
OF_COLORS = ("#000000: cat",)
CLASS_FILES = {"labels": "masks/{split}/{class}"}


def message(root, write, lines=NAMES, **settings):
    """What reading the only image and its label says."""
    one_image(root)
    write(root)
    source = trained_on(custom_config(root, "\n".join(lines), **settings).data)
    with pytest.raises(DataError) as error:
        read_sample(source.samples()[0])
    return str(error.value)


def color_mask(pixels):
    def write(root):
        mask = np.zeros((4, 6, 3), np.uint8)
        mask.reshape(-1, 3)[: len(pixels)] = pixels
        cv2.imwrite(str(root / "masks/train/a.png"), mask)

    return write


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "1 colors that config.data.classes does not list:\n  #010203 in 1 pixels\nAdd a line"),
        (23, "and 18 more\nSo many colors come from smoothing or resizing"),
    ],
)
def test_colors_that_are_not_listed(tmp_path, count, said):
    pixels = [(3, 2, 1 + number) for number in range(count)]
    text = message(tmp_path, color_mask(pixels), OF_COLORS)
    assert f"masks/train/a.png holds {count} colors" in text
    assert said in text


def test_masks_of_classes_in_two_sizes(tmp_path):
    def write(root):
        for name, hw in (("cat", (4, 6)), ("dog", (4, 5))):
            (root / f"masks/train/{name}").mkdir()
            cv2.imwrite(str(root / f"masks/train/{name}/a.png"), np.ones(hw, np.uint8))

    text = message(tmp_path, write, **CLASS_FILES)
    assert "dog/a.png has 4x5 pixels, and other masks of the same image 4x6" in text


LABELME = {
    "a name without a class": (
        [shape("cow", (0, 0), (1, 0), (1, 1))],
        {},
        "a.json has annotations of 'cow', and config.data.classes has no such name (it has cat,"
        " dog). Add it",
    ),
    "a line": (
        [shape("cat", (0, 0), (1, 0), kind="line")],
        {},
        "shape 0 (cat): a shape of type 'line' has no area",
    ),
    "two corners": (
        [shape("cat", (0, 0), (1, 0))],
        {},
        "shape 0 (cat): a polygon of 2 points has no area",
    ),
    "no number": (
        [shape("dog", (0, 0), (1, float("nan")), (2, 2))],
        {},
        "shape 0 (dog): a point is not a finite number",
    ),
    "no size": ([], {"imageHeight": None}, "is not a file of LabelMe: it needs imageHeight"),
    "no area": ([], {"imageHeight": 0}, "an image of 0x6 pixels cannot be drawn"),
    "a huge size": ([], {"imageHeight": 10**9}, "of 1000000000x6 pixels cannot be drawn"),
}


@pytest.mark.parametrize(("shapes", "changes", "said"), LABELME.values(), ids=LABELME)
def test_files_of_labelme(tmp_path, shapes, changes, said):
    assert said in message(tmp_path, lambda root: write_labelme(root, shapes, **changes))


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read"), ("[]", "no annotations: its JSON is not an object")]
)
def test_files_that_are_no_annotations(tmp_path, text, said):
    found = message(tmp_path, lambda root: (root / "masks/train/a.json").write_text(text))
    assert "masks/train/a.json" in found
    assert said in found


def annotation(**changes):
    square = [[0, 0, 3, 0, 3, 2, 0, 2]]
    return {"annotations": [{"image_id": 7, "category_id": 1, "segmentation": square} | changes]}


COCO_FILES = {
    "no annotations": ({"annotations": []}, "labels.json has no annotations"),
    "no images": ({"images": []}, "labels.json has no images"),
    "no categories": ({"categories": []}, "labels.json has no categories"),
    "another category": (
        annotation(category_id=3),
        "an annotation has the category 3, which the file does not list",
    ),
    "another image": (
        annotation(image_id=8),
        "an annotation has the image 8, which the file does not list",
    ),
    "no size": (
        {"images": [{"id": 7, "file_name": "a.jpg"}]},
        "labels.json is not a COCO file: KeyError: 'height'",
    ),
    "two corners": (
        annotation(segmentation=[[0, 0, 3, 0]]),
        "(a.jpg): a segmentation cannot be drawn: a polygon has fewer than three corners",
    ),
    "run lengths of another size": (
        annotation(segmentation={"size": [9, 9], "counts": [81]}),
        "run lengths of [9, 9], not of 4x6",
    ),
}


@pytest.mark.parametrize(("changes", "said"), COCO_FILES.values(), ids=COCO_FILES)
def test_files_of_coco(tmp_path, changes, said):
    assert said in message(tmp_path, lambda root: write_coco(root, **changes), **COCO)


def test_a_category_without_a_class(tmp_path):
    text = message(tmp_path, write_coco, ["dog"], **COCO)
    assert "labels.json has annotations of 'cat'" in text
    assert "'cat: ignore'" in text


def test_a_file_without_anything(tmp_path):
    text = message(tmp_path, lambda root: (root / "labels.json").write_text("{}"), **COCO)
    assert "labels.json has no images" in text
