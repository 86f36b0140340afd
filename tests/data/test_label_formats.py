"""Labels as tools export them: one meaning in every format, and messages for what does not fit."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data.annotations.drawn_label import DrawnLabel
from jaxseg.data.datasets.description import IGNORE
from jaxseg.data.pack import pack
from jaxseg.data.samples import label_hw, read_sample
from jaxseg.data.source import evaluated_on, trained_on
from jaxseg.data.survey import survey
from jaxseg.errors import DataError
from support import label_exports
from support.label_exports import COCO, one_image, shape, write_coco, write_labelme
from support.tiny_datasets import custom_config

# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

CVAT = {
    "images": "JPEGImages",
    "labels": "SegmentationClass",
    "split_list": "ImageSets/Segmentation/{split}.txt",
}
EXPORTS = {  # how to write the labels, and the settings that they need
    "index masks": (label_exports.index_masks, {}),
    "color masks": (label_exports.color_masks, {}),
    "CVAT": (label_exports.cvat, CVAT),
    "LabelMe": (label_exports.labelme, {}),
    "COCO instances": (
        label_exports.coco_instances,
        {"labels": "annotations/instances_{split}.json"},
    ),
    "COCO panoptic": (
        label_exports.coco_panoptic,
        {"labels": "annotations/panoptic_{split}.json"},
    ),
    "one file per class": (label_exports.class_files, {"labels": "masks/{split}/{class}"}),
}


def only_label(found):
    (sample,) = found.samples()
    return read_sample(sample)[1]


def source(root, lines, **settings):
    return trained_on(custom_config(root, "\n".join(lines), **settings).data)


@pytest.mark.parametrize(("write", "settings"), EXPORTS.values(), ids=EXPORTS)
def test_all_exports_of_six_scenes_give_the_same_train_ids(tmp_path, write, settings):
    if write is not label_exports.cvat:
        label_exports.write_images(tmp_path)
    found = source(tmp_path, write(tmp_path), **settings)
    assert found.dataset.classes == label_exports.CLASSES
    samples = found.samples()
    assert [sample.name for sample in samples] == [name for name, *_ in label_exports.painted()]
    for sample, (_, image, label) in zip(samples, label_exports.painted(), strict=True):
        pixels, train_ids = read_sample(sample)
        np.testing.assert_array_equal(train_ids, label)
        np.testing.assert_array_equal(pixels[..., ::-1], image)
        assert label_hw(sample) == label.shape
    pairs = found.pairs()
    looked = survey(found.dataset, pairs)
    assert not looked.faults
    counts = np.bincount(np.concatenate([label.ravel() for *_, label in label_exports.painted()]))
    assert looked.class_pixels().tolist() == counts.tolist()


@pytest.mark.parametrize(
    "kind", ["LabelMe", "COCO instances", "COCO panoptic", "one file per class"]
)
def test_values_in_the_class_file_do_not_count_for_annotations(tmp_path, kind):
    write, settings = EXPORTS[kind]
    label_exports.write_images(tmp_path)
    lines = [f"{10 * k + 7}: {name}" for k, name in enumerate(write(tmp_path))]
    found = source(tmp_path, ["5: ignore", *lines], **settings)
    for sample, (_, _, label) in zip(found.samples(), label_exports.painted(), strict=True):
        np.testing.assert_array_equal(read_sample(sample)[1], label)


def test_shapes_named_ignore_are_ignored(tmp_path):
    one_image(tmp_path)
    write_labelme(tmp_path, [shape("ignore", (0, 0), (6, 0), (6, 4), (0, 4))])
    assert (only_label(source(tmp_path, ["cat", "background"])) == IGNORE).all()


@pytest.mark.parametrize("name", ["train/a.jpg", "images/train/a.jpg", "images\\train\\a.jpg"])
def test_a_coco_file_may_name_images_with_their_folder(tmp_path, name):
    one_image(tmp_path)
    write_coco(tmp_path, images=[{"id": 7, "file_name": name, "height": 4, "width": 6}])
    assert (only_label(source(tmp_path, ["cat", "dog"], **COCO)) == 0).sum() == 6


@pytest.mark.parametrize("folder", ["masks/{split}", "images/{split}"])
def test_classes_may_have_suffixes(tmp_path, folder):
    one_image(tmp_path)
    place = tmp_path / folder.format(split="train")
    for column, name in enumerate(("sign", "street_sign")):
        mask = np.zeros((4, 6), np.uint8)
        mask[:, column] = 255
        cv2.imwrite(str(place / f"a_{name}.png"), mask)
    found = source(tmp_path, ["sign", "street_sign"], labels=folder, label_suffix="_{class}.png")
    assert only_label(found)[0].tolist() == [0, 1, *[IGNORE] * 4]


def test_labelme_files_may_lie_beside_images_of_any_kind(tmp_path):
    folder = tmp_path / "images/train"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "masks/train").mkdir(parents=True)
    write_labelme(tmp_path, [shape("cat", (0, 0), (6, 0), (6, 4), (0, 4))])
    (tmp_path / "masks/train/a.json").rename(folder / "a.json")
    found = source(tmp_path, ["cat", "dog"], labels="images/{split}")
    assert (only_label(found) == 0).all()


def test_what_nothing_covers_is_ignored_or_the_background(tmp_path):
    one_image(tmp_path)
    write_coco(tmp_path)
    label = only_label(source(tmp_path, ["cat", "dog"], **COCO))
    assert (label[:2, :3] == 0).all()
    assert (label == IGNORE).sum() == 4 * 6 - 2 * 3
    label = only_label(source(tmp_path, ["cat", "dog", "background"], **COCO))
    assert (label == 2).sum() == 4 * 6 - 2 * 3


def test_names_in_annotations_may_be_joined_and_ignored(tmp_path):
    one_image(tmp_path)
    left, right = (
        shape("car", (0, 0), (2, 0), (2, 4), (0, 4)),
        shape("void", (4, 0), (5.9, 3.9), kind="rectangle"),
    )
    write_labelme(tmp_path, [left, right])
    lines = ["vehicle", "background", "car: vehicle", "void: ignore"]
    label = only_label(source(tmp_path, lines))
    assert label[0].tolist() == [0, 0, 0, 1, IGNORE, IGNORE]


def test_the_pixels_of_the_corners_belong_to_a_polygon_and_circles_are_round(tmp_path):
    one_image(tmp_path, hw=(20, 20))
    circle = shape("dot", (10, 10), (10, 14.2), kind="circle")
    write_labelme(tmp_path, [circle], imageHeight=20, imageWidth=20)
    label = only_label(source(tmp_path, ["dot", "background"]))
    assert np.pi * 4**2 < (label == 0).sum() < np.pi * 5.3**2
    y, x = np.nonzero(label == 0)
    assert (x.min(), x.max(), y.min(), y.max()) == (5, 14, 5, 14)


def test_later_shapes_cover_earlier_ones_and_the_survey_counts_it(tmp_path):
    one_image(tmp_path)
    whole = shape("cat", (0, 0), (6, 0), (6, 4), (0, 4))
    part = shape("dog", (1, 1), (2, 1), (2, 2), (1, 2))
    write_labelme(tmp_path, [whole, part, part])
    found = source(tmp_path, ["cat", "dog"])
    assert (only_label(found)[1:3, 1:3] == 1).all()
    assert (only_label(found) == 1).sum() == 4
    looked = survey(found.dataset, found.pairs())
    assert "4 pixels of 1 label belong to shapes of several classes" in str(looked)
    assert not looked.faults


def test_values_of_a_color_mask_are_named_by_their_colors(tmp_path):
    one_image(tmp_path)
    mask = np.zeros((4, 6, 3), np.uint8)
    mask[:, 3:] = (128, 64, 128)
    cv2.imwrite(str(tmp_path / "masks/train/a.png"), mask)
    found = source(tmp_path, ["#804080: road", "#000000: ignore"])
    assert (only_label(found)[:, :3] == IGNORE).all()
    assert "#804080  0 road" in str(survey(found.dataset, found.pairs()))
    assert found.dataset.palette.tolist() == [[128, 64, 128]]


def test_a_palette_mask_may_be_read_by_its_colors(tmp_path):
    one_image(tmp_path)
    picture = Image.fromarray(np.full((4, 6), 5, np.uint8), mode="P")
    picture.putpalette([0, 0, 0] * 5 + [10, 20, 30])
    picture.save(tmp_path / "masks/train/a.png")
    assert (only_label(source(tmp_path, ["#0a141e: road"])) == 0).all()
    assert (only_label(source(tmp_path, ["5: road"])) == 0).all()


def test_masks_may_be_tiff_and_images_of_several_kinds(tmp_path):
    one_image(tmp_path)
    one_image(tmp_path, "b")
    (tmp_path / "images/train/b.jpg").rename(tmp_path / "images/train/b.JPEG")
    for name, suffix in (("a", ".tif"), ("b", ".png")):
        cv2.imwrite(str(tmp_path / f"masks/train/{name}{suffix}"), np.ones((4, 6), np.uint8))
    samples = source(tmp_path, ["a", "b"]).samples()
    assert [(read_sample(sample)[1] == 1).all() for sample in samples] == [True, True]


def test_an_image_that_a_coco_file_does_not_list_has_no_label(tmp_path):
    one_image(tmp_path)
    one_image(tmp_path, "b")
    write_coco(tmp_path)
    with pytest.raises(DataError, match=r"(?s)1 of 2 custom images .* have no label:.*b\.jpg"):
        source(tmp_path, ["cat", "dog"], **COCO).samples()


def test_drawn_labels_are_packed(tmp_path):
    one_image(tmp_path)
    write_coco(tmp_path)
    config = custom_config(tmp_path, "cat\ndog", **COCO)
    before = trained_on(config.data)
    assert isinstance(before.samples()[0].label, DrawnLabel)
    pack(before, tmp_path / "packed")
    config.data.root = str(tmp_path / "packed")
    np.testing.assert_array_equal(only_label(trained_on(config.data)), only_label(before))
    other = custom_config(tmp_path, "dog\ncat", **COCO).data
    other.root = config.data.root
    with pytest.raises(DataError, match=r"drawn by other class names .*:\ncat\ndog\nSet"):
        trained_on(other).samples()


def test_a_share_of_the_images_is_for_validation(tmp_path):
    for number in range(20):
        one_image(tmp_path, f"video{number // 5}_{number:02}")
        cv2.imwrite(
            str(tmp_path / f"masks/train/video{number // 5}_{number:02}.png"),
            np.zeros((4, 6), np.uint8),
        )

    def names(seed=0, **settings):
        config = custom_config(tmp_path, "a\nb", share_seed=seed, val_share=0.2, **settings)
        parts = trained_on(config.data).samples(), evaluated_on(config.data).samples()
        return [[sample.name for sample in part] for part in parts]

    train, val = names()
    assert (len(train), len(val)) == (16, 4)
    assert not set(train) & set(val)
    assert names() == [train, val]
    assert names(seed=1)[1] != val
    one_image(tmp_path, "z")
    cv2.imwrite(str(tmp_path / "masks/train/z.png"), np.zeros((4, 6), np.uint8))
    assert len(set(names()[1]) ^ set(val)) <= 2  # one more image moves few of the others
    whole = custom_config(tmp_path, "a\nb", val_share=0.2, val_split="test")
    (tmp_path / "images/test").mkdir()
    (tmp_path / "masks/test").mkdir()
    for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
        shutil.copy(tmp_path / kind / f"train/z{suffix}", tmp_path / kind / f"test/t{suffix}")
    assert [sample.name for sample in evaluated_on(whole.data).samples()] == ["t"]
    whole = custom_config(tmp_path, "a\nb", val_share=0.2, val_root=tmp_path, val_split="train")
    assert len(evaluated_on(whole.data).samples()) == len(names()[0])
    with pytest.raises(DataError, match=r"leaves no images .* 21 images, in 1 folder$"):
        names(share_by="folder")


def test_the_images_of_a_folder_stay_together(tmp_path):
    for number in range(12):
        folder = f"video{number // 3}"
        for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
            path = tmp_path / kind / "train" / folder / f"{number:02}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (4, 6, 3) if kind == "images" else (4, 6)
            cv2.imwrite(str(path), np.zeros(shape, np.uint8))
    config = custom_config(tmp_path, "a\nb", val_share=0.1, share_by="folder")
    parts = trained_on(config.data).samples(), evaluated_on(config.data).samples()
    folders = [{sample.image.parent.name for sample in part} for part in parts]
    assert [len(part) for part in parts] == [9, 3]
    assert not folders[0] & folders[1]


@pytest.mark.parametrize("line", ["b", "b.jpg", "images/train/b", "images/train/b.jpg"])
def test_a_list_names_images_in_any_of_four_ways(tmp_path, line):
    for name in "ab":
        one_image(tmp_path, name)
        cv2.imwrite(str(tmp_path / f"masks/train/{name}.png"), np.zeros((4, 6), np.uint8))
    (tmp_path / "train.txt").write_text(f"{line}\n")
    (sample,) = source(tmp_path, ["cat", "dog"], split_list="{split}.txt").samples()
    assert sample.name == "b"
