"""The folders in which each dataset is released: which samples are found, and what is read."""

import cv2
import numpy as np
import pytest

from jaxseg.data.datasets import get_dataset
from jaxseg.data.samples import read_label, read_sample
from jaxseg.data.source import find_samples
from jaxseg.errors import DataError
from support.tiny_datasets import (
    HW,
    PASCAL_LISTS,
    only_sample,
    write_ade20k,
    write_cityscapes,
    write_coco_stuff,
    write_pascal_context,
    write_photograph,
)


def test_samples_are_found_in_all_cities_in_the_order_of_their_paths(tmp_path):
    for name in ("ulm_000001_000019", "aachen_000000_000019", "aachen_000003_000019"):
        write_cityscapes(tmp_path, name)
    write_cityscapes(tmp_path, "bonn_000000_000019", split="val")
    samples = find_samples("cityscapes", str(tmp_path), "train")
    assert [sample.name for sample in samples] == [
        *("aachen_000000_000019", "aachen_000003_000019", "ulm_000001_000019")
    ]
    assert samples == find_samples("cityscapes", tmp_path, "train")


def test_hidden_files_and_other_label_files_are_passed_over(tmp_path):
    image, _ = write_cityscapes(tmp_path, "ulm_000000_000019")
    write_cityscapes(tmp_path, "ulm_000000_000019", kind="instanceIds")
    (image.parent / f"._{image.name}").write_bytes(b"what some systems leave behind")
    assert only_sample(tmp_path).label.name == "ulm_000000_000019_gtFine_labelIds.png"


def test_ready_made_train_ids_are_preferred(tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019", label=np.full(HW, 26, np.uint8))
    assert (read_label(only_sample(tmp_path)) == 13).all()
    write_cityscapes(
        tmp_path, "ulm_000000_000019", kind="labelTrainIds", label=np.full(HW, 18, np.uint8)
    )
    assert (read_label(only_sample(tmp_path)) == 18).all()


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    write_cityscapes(tmp_path / "disk", "ulm_000000_000019")
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "root" / kind / "train").mkdir(parents=True)
        link = tmp_path / "root" / kind / "train" / "ulm"
        link.symlink_to(tmp_path / "disk" / kind / "train" / "ulm")
    assert read_sample(only_sample(tmp_path / "root"))[1].shape == HW


def test_coarse_data_have_their_labels_in_a_folder_of_their_own(tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019")
    image, label = write_cityscapes(tmp_path, "erlangen_000000_000000", split="train_extra")
    refined = tmp_path / "refinement_final" / "train_extra" / "erlangen" / label.name
    refined.parent.mkdir(parents=True)
    label.rename(refined)
    samples = find_samples("cityscapes", tmp_path, "train+train_extra")
    assert [sample.name for sample in samples] == ["ulm_000000_000019", "erlangen_000000_000000"]
    assert (samples[1].image, samples[1].label) == (image, refined)


def test_splits_are_concatenated_in_the_order_given(tmp_path):
    for name in ("ulm_000001_000019", "ulm_000002_000019"):
        write_cityscapes(tmp_path, name)
    write_cityscapes(tmp_path, "aachen_000000_000019", split="val")
    train, val = (find_samples("cityscapes", tmp_path, split) for split in ("train", "val"))
    assert find_samples("cityscapes", tmp_path, "train+val") == train + val
    assert find_samples("cityscapes", tmp_path, "val+train") == val + train


def test_ade20k_is_read_as_released(tmp_path):
    for number in (3, 1):
        write_ade20k(tmp_path, number, pixels=np.array([0, 1, 2, 3, 4, 5, 6, 150]))
    write_ade20k(tmp_path, 2, split="validation")
    samples = find_samples("ade20k", tmp_path, "training")
    assert [sample.name for sample in samples] == ["ADE_train_00000001", "ADE_train_00000003"]
    image, label = read_sample(samples[0])
    np.testing.assert_array_equal(image, cv2.imread(str(samples[0].image)), strict=True)
    assert label[0].tolist() == [255, 0, 1, 2, 3, 4, 5, 149]
    (sample,) = find_samples("ade20k", tmp_path, "validation")
    assert sample.name == "ADE_val_00000002"


MAPILLARY = {"training": "aZ_0", "validation": "Bx-1"}  # a file of each split


@pytest.mark.parametrize("folder", ["v1.2/labels", "labels"])
def test_mapillary_is_read_as_released_old_and_new(tmp_path, folder):
    raw = {"training": [2, 13, 24, 41, 19, 22, 65, 4], "validation": 55}
    for split, name in MAPILLARY.items():
        image, label = f"{split}/images/{name}.jpg", f"{split}/{folder}/{name}.png"
        write_photograph(tmp_path, image, label, pixels=raw[split])
        write_photograph(tmp_path, image, f"{split}/v2.0/labels/{name}.png", pixels=99)
    find = find_samples
    samples = find("mapillary_to_cityscapes", tmp_path, "training+validation")
    assert [sample.name for sample in samples] == list(MAPILLARY.values())
    first, second = (read_sample(sample)[1] for sample in samples)
    assert first[0].tolist() == [1, 0, 0, 0, 11, 12, 255, 255]
    assert (second == get_dataset("cityscapes").classes.index("car")).all()


def test_mapillary_prefers_the_newer_folder(tmp_path):
    for folder in ("v1.2/labels", "labels"):
        write_photograph(tmp_path, "training/images/a.jpg", f"training/{folder}/a.png")
    (sample,) = find_samples("mapillary_to_cityscapes", tmp_path, "training")
    assert sample.label == tmp_path / "training/v1.2/labels/a.png"


def test_coco_stuff_164k_is_read_as_released(tmp_path):
    raw = [0, 10, 12, 89, 91, 180, 181, 255]
    label = write_coco_stuff(tmp_path, "train2017/000000000009", "", pixels=raw)
    (sample,) = find_samples("coco_stuff164k", tmp_path, "train2017")
    assert (sample.name, sample.label) == ("000000000009", label)
    assert read_sample(sample)[1][0].tolist() == [0, 10, 11, 79, 80, 169, 170, 255]


def test_coco_stuff_164k_prefers_converted_labels(tmp_path):
    for kind in ("", "_labelTrainIds"):
        label = write_coco_stuff(tmp_path, "val2017/1", kind, pixels=170)
    (sample,) = find_samples("coco_stuff164k", tmp_path, "val2017")
    assert sample.label == label
    assert (read_label(sample) == 170).all()


def test_coco_stuff_10k_stores_the_unlabeled_as_zero(tmp_path):
    raw = [0, 1, 2, 3, 80, 81, 170, 171]
    write_coco_stuff(tmp_path, "test2014/COCO_train2014_1", "_labelTrainIds", pixels=raw)
    (sample,) = find_samples("coco_stuff10k", tmp_path, "test2014")
    assert read_sample(sample)[1][0].tolist() == [255, 0, 1, 2, 79, 80, 169, 170]


def test_message_says_where_the_labels_of_coco_stuff_10k_come_from(tmp_path):
    write_coco_stuff(tmp_path, "train2014/1", "", pixels=1)
    with pytest.raises(DataError, match=r"1 of 1 .*\n.*/1\.jpg") as error:
        find_samples("coco_stuff10k", tmp_path, "train2014")
    assert "coco_stuff10k.py makes these labels" in str(error.value)
    assert "nothing has to be converted" not in str(error.value)


def test_potsdam_is_read_as_tiles(tmp_path):
    tile = "2_10_0_0_512_512.png"
    write_photograph(tmp_path, f"img_dir/train/{tile}", f"ann_dir/train/{tile}", pixels=range(8))
    (sample,) = find_samples("potsdam", tmp_path, "train")
    with pytest.raises(DataError, match="the label values 7, "):
        read_sample(sample)
    write_photograph(tmp_path, f"img_dir/train/{tile}", f"ann_dir/train/{tile}", pixels=6)
    assert (read_sample(sample)[1] == 5).all()


def test_chase_db1_is_read_as_converted(tmp_path):
    for kind in ("1stHO", "2ndHO"):  # both observers lie there; the first one counts
        label = f"annotations/training/Image_01L_{kind}.png"
        write_photograph(tmp_path, "images/training/Image_01L.png", label, pixels=[0, 1] * 4)
    (sample,) = find_samples("chase_db1", tmp_path, "training")
    assert sample.label.name == "Image_01L_1stHO.png"
    assert read_sample(sample)[1][0].tolist() == [0, 1] * 4


def test_nyu_depth_v2_is_read_by_its_lists(tmp_path):
    for name in ("00001", "00003", "00002"):
        write_photograph(tmp_path, f"image/{name}.png", f"label40/{name}.png", pixels=[0, 40] * 4)
    (tmp_path / "train.txt").write_text("00003\n00001\n")
    (tmp_path / "test.txt").write_text("00002\n")
    samples = find_samples("nyu_depth_v2", tmp_path, "train")
    assert [sample.name for sample in samples] == ["00003", "00001"]
    assert read_sample(samples[0])[1][0].tolist() == [255, 39] * 4
    (sample,) = find_samples("nyu_depth_v2", tmp_path, "test")
    assert sample.name == "00002"


PASCAL_CONTEXT = ("pascal_context59", "pascal_context60")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pascal_context59", [255, 0, 1, 2, 3, 57, 58, 255])]
    + [("pascal_context60", [0, 1, 2, 3, 4, 58, 59, 255])],
)
def test_pascal_context_reads_one_file_both_ways(tmp_path, name, expected):
    write_pascal_context(tmp_path, ["2008_000002"], pixels=[0, 1, 2, 3, 4, 58, 59, 255])
    (sample,) = find_samples(name, tmp_path, "train")
    image, label = read_sample(sample)
    np.testing.assert_array_equal(image, cv2.imread(str(sample.image)), strict=True)
    assert label[0].tolist() == expected


@pytest.mark.parametrize("name", PASCAL_CONTEXT)
def test_lists_say_which_images_make_a_split_and_in_which_order(tmp_path, name):
    images = ("2008_000002", "2008_000003", "2009_000001", "2010_000009")
    write_pascal_context(tmp_path, images, listed=["2010_000009", "", " 2008_000003 "])
    write_pascal_context(tmp_path, [], split="val", listed=["2008_000002"])
    (tmp_path / "SegmentationClassContext/2009_000001.png").unlink()  # in neither list
    samples = find_samples(name, tmp_path, "train+val")
    assert [s.name for s in samples] == ["2010_000009", "2008_000003", "2008_000002"]


def test_missing_list_shows_which_there_are(tmp_path):
    path = write_pascal_context(tmp_path, ["a"])
    with pytest.raises(
        DataError, match="No list of the pascal_context59 split 'trainval'"
    ) as error:
        find_samples("pascal_context59", tmp_path, "trainval")
    message = str(error.value)
    assert f"    {PASCAL_LISTS}/trainval.txt\n" in message
    assert f"{path.parent}/ holds train.txt" in message
    assert "pascal_context.py" in message


def test_listed_images_that_are_missing_are_counted_and_named(tmp_path):
    path = write_pascal_context(tmp_path, ["a"], listed=["a", *"bcdefgh"])
    with pytest.raises(DataError, match=r"7 of 8 .* are missing") as error:
        find_samples("pascal_context60", tmp_path, "train")
    message = str(error.value)
    assert f"{tmp_path}/JPEGImages/b.jpg" in message
    assert "and 2 more" in message
    assert f"{path} names them" in message


def test_empty_list_is_refused(tmp_path):
    path = write_pascal_context(tmp_path, ["a"], listed=[])
    with pytest.raises(DataError, match="names no images") as error:
        find_samples("pascal_context60", tmp_path, "train")
    assert str(path) in str(error.value)


def test_listed_image_without_label_is_named(tmp_path):
    write_pascal_context(tmp_path, ["a", "b"])
    (tmp_path / "SegmentationClassContext/b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 .* have no label:\n.*JPEGImages/b.jpg") as error:
        find_samples("pascal_context59", tmp_path, "train")
    assert "pascal_context.py" in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "split", "expected"),
    [
        (
            "cityscapes",
            "train+train_extra",
            ("leftImg8bit/train/<city>/*_leftImg8bit.png", "gtFine/train/<city>/*_gtFine_")
            + ("leftImg8bit/train_extra/<city>/", "refinement_final/train_extra/<city>/*_gtFine_"),
        ),
        ("ade20k", "training", ("images/training/*.jpg", "annotations/training/*.png")),
        (
            "mapillary_to_cityscapes",
            "training+validation",
            ("training/images/*.jpg", "training/v1.2/labels/*.png or training/labels/*.png")
            + ("validation/images/*.jpg", "validation/v1.2/labels/*.png or validation/labels/"),
        ),
        (
            "coco_stuff164k",
            "val2017",
            ("images/val2017/*.jpg", "annotations/val2017/*_labelTrainIds.png or *.png"),
        ),
        (
            "coco_stuff10k",
            "train2014",
            ("images/train2014/*.jpg", "annotations/train2014/*_labelTrainIds.png"),
        ),
        (
            "pascal_context59",
            "train+val",
            ("JPEGImages/*.jpg", "SegmentationClassContext/*.png")
            + (f"{PASCAL_LISTS}/train.txt", f"{PASCAL_LISTS}/val.txt"),
        ),
        ("potsdam", "val", ("img_dir/val/*.png", "ann_dir/val/*.png")),
        (
            "chase_db1",
            "training",
            ("images/training/*.png", "annotations/training/*_1stHO.png"),
        ),
        ("nyu_depth_v2", "test", ("image/*.png", "label40/*.png", "test.txt")),
    ],
)
def test_the_tree_of_every_dataset_and_split_is_shown(tmp_path, dataset, split, expected):
    with pytest.raises(DataError) as error:
        find_samples(dataset, tmp_path, split)
    message = str(error.value)
    assert all(f"    {line}" in message for line in expected), message
    assert f"{tmp_path}/ holds nothing" in message
    assert ("jaxseg synth" in message) == (dataset == "cityscapes")
