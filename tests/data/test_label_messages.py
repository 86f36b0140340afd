"""Labels that do not fit: each gets a message that says what is wrong, and where."""

import re

import cv2
import numpy as np
import pytest

from jaxseg.data.class_weights import count_class_pixels
from jaxseg.data.samples import read_sample
from jaxseg.data.source import check_sources, trained_on
from jaxseg.errors import ConfigError, CorruptFileError, DataError
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
        (1, "config.data.classes does not list (1):\n  #010203 in 1 pixels\nAdd a line"),
        (23, "and 18 more\nSo many colors come from smoothing or resizing"),
    ],
)
def test_colors_that_are_not_listed(tmp_path, count, said):
    pixels = [(3, 2, 1 + number) for number in range(count)]
    text = message(tmp_path, color_mask(pixels), OF_COLORS)
    assert "masks/train/a.png holds colors that" in text
    assert f"({count}):" in text
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
    entry = {"id": 12, "image_id": 7, "category_id": 1, "segmentation": square}
    return {"annotations": [entry | changes]}


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
        "(a.jpg): the annotation 12 cannot be drawn: a polygon has fewer than three corners",
    ),
    "a box alone": (
        annotation(segmentation=[]),
        "(a.jpg): the annotation 12 cannot be drawn: it has no segmentation; a box alone covers no",
    ),
    "a corner far away": (
        annotation(segmentation=[[0, 0, 1e30, 0, 3, 2]]),
        "the annotation 12 cannot be drawn: a corner at 1e+30 is far outside of 4x6 pixels",
    ),
    "a corner that is no number": (
        annotation(segmentation=[[0, 0, float("nan"), 0, 3, 2]]),
        "the annotation 12 cannot be drawn: a corner at nan is far outside",
    ),
    "too few run lengths": (
        annotation(segmentation={"size": [4, 6], "counts": [20]}),
        "its run lengths add up to 20, not to 4 times 6 pixels",
    ),
    "damaged run lengths": (
        annotation(segmentation={"size": [4, 6], "counts": "zzzz"}),
        "the annotation 12 cannot be drawn: its compressed run lengths are damaged",
    ),
    "an image twice": (
        {"images": [{"id": k, "file_name": "a.jpg", "height": 4, "width": 6} for k in (7, 8)]},
        "labels.json lists 2 images with the file_name 'a.jpg'; join them",
    ),
    "two images of one id": (
        {"images": [{"id": 7, "file_name": f, "height": 4, "width": 6} for f in ("a.jpg", "b")]},
        "labels.json lists 2 images with the id 7; join them",
    ),
    "images of one stem": (
        {
            "images": [
                {"id": k, "file_name": f"a.{kind}", "height": 4, "width": 6}
                for k, kind in ((7, "jpg"), (8, "png"))
            ]
        },
        "labels.json lists images of the same name",
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


def test_images_that_a_coco_file_does_not_name(tmp_path):
    images = [{"id": 7, "file_name": "elsewhere/b.jpg", "height": 4, "width": 6}]
    text = message(tmp_path, lambda root: write_coco(root, images=images), **COCO)
    assert "have no label" in text
    assert "labels.json is a file" in text
    assert "labels.json names\n  elsewhere/b" in text


def test_a_class_folder_or_suffix_that_is_not_listed(tmp_path):
    def folders(root):
        for name in ("cat", "cow"):
            (root / f"masks/train/{name}").mkdir()
            cv2.imwrite(str(root / f"masks/train/{name}/a.png"), np.ones((4, 6), np.uint8))

    def suffixes(root):
        for name in ("cat", "cow"):
            cv2.imwrite(str(root / f"masks/train/a_{name}.png"), np.ones((4, 6), np.uint8))

    text = message(tmp_path / "1", folders, **CLASS_FILES)
    assert "masks/train/cow has annotations of 'cow'" in text
    text = message(tmp_path / "2", suffixes, label_suffix="_{class}.png")
    assert "a_cow.png has annotations of 'cow'" in text


def test_pictures_that_all_end_as_labels_do(tmp_path):
    text = message(tmp_path, lambda _: None, labels="images/{split}", label_suffix=".jpg")
    assert "All 1 pictures in" in text
    assert "Set config.data.label_suffix to what only labels end with" in text


def test_damaged_annotations_may_be_skipped_like_damaged_pictures(tmp_path):
    for name in "ba":
        one_image(tmp_path, name)
        write_labelme(tmp_path, [shape("cat", (0, 0), (6, 0), (6, 4), (0, 4))])
        (tmp_path / "masks/train/a.json").rename(tmp_path / f"masks/train/{name}.json")
    (tmp_path / "masks/train/b.json").write_text("{")
    source = trained_on(custom_config(tmp_path, "cat\ndog").data)
    with pytest.raises(CorruptFileError, match=r"b\.json cannot be read"):
        count_class_pixels(source, skip_corrupt=False)
    assert count_class_pixels(source, skip_corrupt=True).tolist() == [24, 0]


DIVISIONS = {
    "a list too": (
        {"val_share": 0.5, "split_list": "{split}.txt"},
        "does not go with config.data.split_list",
    ),
    "two splits": (
        {"val_share": 0.5, "train_split": "a+b"},
        "does not go with config.data.train_split=a+b",
    ),
    "val is trained on": ({"val_share": 0.5, "train_split": "val"}, "train_split=val cannot be it"),
    "another split for validation": (
        {"val_share": 0.5, "val_split": "test"},
        "makes the split 'val', and config.data.val_split=test would not use it",
    ),
    "the same images": (
        {"images": "images", "labels": "masks"},
        "config.data.images=images holds no",
    ),
    "the same list": (
        {"images": "images", "labels": "masks", "split_list": "all.txt"},
        "or config.data.split_list, with {split} in it",
    ),
}


@pytest.mark.parametrize(("settings", "said"), DIVISIONS.values(), ids=DIVISIONS)
def test_images_for_validation_must_be_others(tmp_path, settings, said):
    config = custom_config(tmp_path, "cat\ndog", **settings)
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_sources(config.data)


def test_records_are_not_divided(tmp_path):
    config = custom_config(tmp_path, "cat\ndog", val_share=0.5, source="tfds:cells")
    with pytest.raises(ConfigError, match=r"divides folders of files, not config\.data"):
        trained_on(config.data).pairs()
