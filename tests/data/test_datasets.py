"""Classes and label tables of the datasets, and bad input: what is missing or damaged is named."""

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg.data.datasets import get_dataset
from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.description import UNKNOWN
from jaxseg.data.evaluation_images import plan_batches
from jaxseg.data.samples import read_sample
from jaxseg.data.source import Source, evaluated_on, find_samples, trained_on
from jaxseg.errors import ConfigError, CorruptFileError, DataError, JaxsegError
from support.tiny_datasets import HW, only_sample, write_ade20k, write_cityscapes


def test_cityscapes_has_19_classes_with_a_color_each():
    dataset = CITYSCAPES
    assert len(dataset.classes) == 19
    assert dataset.palette.shape == (19, 3)
    assert dataset.palette.dtype == np.uint8
    assert len(np.unique(dataset.palette, axis=0)) == 19
    assert dict(zip(dataset.classes, dataset.palette.tolist(), strict=True))["car"] == [0, 0, 142]


def test_raw_ids_become_train_ids():
    train_ids, raw_ids = (form.train_ids for form in CITYSCAPES.label_formats)
    classes = CITYSCAPES.classes
    named = {7: "road", 11: "building", 19: "traffic light", 26: "car", 31: "train", 33: "bicycle"}
    assert {raw: classes[raw_ids[raw]] for raw in named} == named
    assert sorted(set(raw_ids[:34])) == [*range(19), 255]
    assert (raw_ids[[0, 1, 4, 9, 10, 14, 18, 29, 30, 255]] == 255).all()
    assert (raw_ids[34:255] == UNKNOWN).all()
    assert train_ids[:19].tolist() == list(range(19))
    assert (train_ids[19:255] == UNKNOWN).all()


def test_image_is_bgr_and_label_is_mapped(tmp_path):
    raw = np.arange(HW[0] * HW[1], dtype=np.uint8).reshape(HW) % 34
    raw[0, 0] = 255
    image_path, _ = write_cityscapes(tmp_path, "ulm_000000_000019", label=raw)
    image, label = read_sample(only_sample(tmp_path))
    np.testing.assert_array_equal(image, cv2.imread(str(image_path)), strict=True)
    expected = CITYSCAPES.label_formats[1].train_ids[raw]
    np.testing.assert_array_equal(label, expected, strict=True)


def test_ade20k_has_150_classes_and_ignores_the_raw_zero():
    dataset = get_dataset("ade20k")
    assert len(dataset.classes) == len(set(dataset.classes)) == 150
    assert dataset.palette.shape == (150, 3)
    named = {0: "wall", 7: "bed", 44: "chest of drawers", 81: "towel", 149: "flag"}
    assert {index: dataset.classes[index] for index in named} == named
    assert dataset.palette[[0, 149]].tolist() == [[120, 120, 120], [92, 0, 255]]
    table = dataset.label_formats[0].train_ids
    assert table[:151].tolist() == [255, *range(150)]
    assert (table[151:255] == UNKNOWN).all()
    assert table[255] == 255


def test_mapillary_has_the_classes_and_colors_of_cityscapes():
    mapillary, cityscapes = map(get_dataset, ("mapillary_to_cityscapes", "cityscapes"))
    assert mapillary.classes == cityscapes.classes
    np.testing.assert_array_equal(mapillary.palette, cityscapes.palette)


def test_mapillary_in_its_own_classes_has_66_or_ignores_the_last():
    without, with_unlabeled = map(get_dataset, ("mapillary65", "mapillary66"))
    assert len(with_unlabeled.classes) == len(set(with_unlabeled.classes)) == 66
    assert with_unlabeled.classes == (*without.classes, "Unlabeled")
    named = {0: "Bird", 8: "Crosswalk - Plain", 23: "Lane Marking - Crosswalk", 64: "Ego Vehicle"}
    assert {index: without.classes[index] for index in named} == named
    assert with_unlabeled.palette[[0, 13, 65]].tolist() == [[165, 42, 42], [128, 64, 128], [0] * 3]
    np.testing.assert_array_equal(without.palette, with_unlabeled.palette[:65], strict=True)
    tables = [dataset.label_formats[0].train_ids for dataset in (without, with_unlabeled)]
    for table in tables:
        assert table[:65].tolist() == list(range(65))
        assert (table[66:255] == UNKNOWN).all()
    assert [table[65] for table in tables] == [255, 65]


def test_mapillary_as_published_takes_values_above_its_own_for_road_and_strictly_for_errors():
    published, strict = (
        get_dataset(name).label_formats[0].train_ids
        for name in ("mapillary_to_cityscapes", "mapillary_to_cityscapes_strict")
    )
    np.testing.assert_array_equal(published[:66], strict[:66])
    assert (published[66:] == 0).all()
    assert (strict[66:255] == UNKNOWN).all()
    assert strict[255] == 255
    classes = CITYSCAPES.classes
    vistas = get_dataset("mapillary66").classes
    mapped = {vistas[raw]: classes[strict[raw]] for raw in np.flatnonzero(strict[:66] < 19)}
    assert mapped["Lane Marking - General"] == mapped["Manhole"] == mapped["Road"] == "road"
    assert mapped["On Rails"] == "train"
    same = {"Building", "Wall", "Fence", "Pole", "Vegetation", "Terrain", "Sky", "Person", "Car"}
    assert all(mapped[name] == name.lower() for name in same)
    assert len(mapped) == 25


@pytest.mark.parametrize("name", ["coco_stuff164k", "coco_stuff10k"])
def test_coco_stuff_has_171_classes(name):
    dataset = get_dataset(name)
    assert len(dataset.classes) == len(set(dataset.classes)) == 171
    named = {0: "person", 11: "stop sign", 79: "toothbrush", 80: "banner", 170: "wood"}
    assert {index: dataset.classes[index] for index in named} == named
    assert dataset.palette.shape == (171, 3)
    assert dataset.palette[[0, 2, 170]].tolist() == [[0, 192, 64], [0, 64, 96], [64, 64, 0]]


def test_every_class_of_coco_stuff_164k_has_one_raw_id():
    table = get_dataset("coco_stuff164k").label_formats[1].train_ids
    unused = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    assert np.delete(table[:182], unused).tolist() == list(range(171))
    assert (table[[*unused, *range(182, 255)]] == UNKNOWN).all()


def test_pascal_context_60_is_59_and_the_background():
    without, with_background = map(get_dataset, ("pascal_context59", "pascal_context60"))
    assert len(without.classes) == len(set(without.classes)) == 59
    assert without.classes[0] == "aeroplane"
    assert with_background.classes == ("background", *without.classes)
    assert with_background.palette[[0, 1, 59]].tolist() == [
        [120] * 3,
        [180, 120, 120],
        [31, 0, 255],
    ]
    np.testing.assert_array_equal(without.palette, with_background.palette[1:], strict=True)


@pytest.mark.parametrize(
    ("name", "classes", "raw"),
    [
        ("potsdam", {0: "impervious_surface", 4: "car", 5: "clutter"}, [255, 0, 1, 2, 3, 4, 5]),
        ("chase_db1", {0: "background", 1: "vessel"}, [0, 1]),
        ("nyu_depth_v2", {0: "wall", 19: "floor mat", 39: "otherprop"}, [255, *range(40)]),
    ],
)
def test_classes_and_raw_values(name, classes, raw):
    dataset = get_dataset(name)
    assert {index: dataset.classes[index] for index in classes} == classes
    assert len(set(dataset.classes)) == max(classes) + 1
    assert dataset.palette.shape == (len(dataset.classes), 3)
    table = dataset.label_formats[0].train_ids
    assert table[: len(raw)].tolist() == raw
    assert (table[len(raw) : 255] == UNKNOWN).all()


def test_another_dataset_may_be_evaluated_on_than_trained_on():
    data = ConfigDict(
        {
            "dataset": "mapillary_to_cityscapes",
            "root": "maps",
            "train_split": "training+validation",
            "val_dataset": "cityscapes",
            "val_root": "city",
            "val_split": "val",
        }
    )
    assert str(trained_on(data)) == "mapillary_to_cityscapes in maps, training+validation"
    assert str(evaluated_on(data)) == "cityscapes in city, val"
    data.val_dataset = data.val_root = ""
    assert str(evaluated_on(data)) == "mapillary_to_cityscapes in maps, val"


def test_photograph_turned_by_its_metadata_is_planned_as_it_is_read(tmp_path):
    path, _ = write_ade20k(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.zeros(HW[::-1], np.uint8)).save(path, exif=exif)
    write_ade20k(tmp_path, 2)
    samples = find_samples("ade20k", tmp_path, "training")
    assert [read_sample(sample)[0].shape[:2] for sample in samples] == [HW, HW]
    assert plan_batches(samples, 2) == [[0, 1]]
    unlabeled = Source(ADE20K, str(tmp_path), "training", labeled=False)
    assert plan_batches(unlabeled.samples(), 2) == [[0, 1]]


def test_unknown_dataset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'cityscape'.*cityscapes"):
        find_samples("cityscape", ".", "train")


def test_missing_root_shows_the_tree_expected_and_what_is_there(tmp_path):
    (tmp_path / "datasets").mkdir()
    with pytest.raises(DataError) as error:
        find_samples("cityscapes", tmp_path / "cityscapes", "train")
    message = str(error.value)
    assert "leftImg8bit/train/<city>/*_leftImg8bit.png" in message
    assert "gtFine/train/<city>/*_gtFine_labelTrainIds.png or *_gtFine_labelIds.png" in message
    assert "cityscapes does not exist" in message
    assert f"{tmp_path}/ holds datasets/" in message
    assert "data.root" in message
    assert f"jaxseg synth --output {tmp_path}/cityscapes" in message


def test_the_missing_one_of_several_splits_is_named(tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019")
    # The label of a coarse image lies in gtFine, where it does not belong.
    write_cityscapes(tmp_path, "erlangen_000000_000000", split="train_extra")
    with pytest.raises(DataError, match=r"1 of 1 .* 'train_extra' have no label") as error:
        find_samples("cityscapes", tmp_path, "train+train_extra")
    assert f"{tmp_path}/refinement_final/ is missing" in str(error.value)


def test_empty_set_shows_where_the_tree_ends(tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019")
    with pytest.raises(DataError) as error:
        find_samples("cityscapes", tmp_path, "val")
    message = str(error.value)
    assert "'val'" in message
    assert f"{tmp_path}/leftImg8bit/ holds train/" in message
    assert f"{tmp_path}/leftImg8bit/val/ is missing" in message


def test_images_without_labels_are_counted_and_named(tmp_path):
    for index in range(8):
        _, label = write_cityscapes(tmp_path, f"ulm_{index:06d}_000019")
        if index:
            label.unlink()
    with pytest.raises(DataError, match="7 of 8") as error:
        find_samples("cityscapes", tmp_path, "train")
    message = str(error.value)
    assert "ulm_000001_000019_leftImg8bit.png" in message
    assert "ulm_000000_000019_leftImg8bit.png" not in message
    assert "and 2 more" in message
    assert "nothing has to be converted" in message


def test_label_of_another_size_names_both_files_and_sizes(tmp_path):
    image, label = write_cityscapes(tmp_path, "ulm_000000_000019", image_hw=(12, 16))
    with pytest.raises(DataError, match="size") as error:
        read_sample(only_sample(tmp_path))
    assert f"{image}: (12, 16)" in str(error.value)
    assert f"{label}: (6, 8)" in str(error.value)


def test_label_value_outside_the_table_is_named_with_its_file(tmp_path):
    raw = np.full(HW, 7, np.uint8)
    raw[0, :5] = (40, 41, 42, 200, 254)
    _, label = write_cityscapes(tmp_path, "ulm_000000_000019", label=raw)
    with pytest.raises(DataError, match=r"40-42, 200, 254.*known: 0-33, 255") as error:
        read_sample(only_sample(tmp_path))
    assert str(label) in str(error.value)
    assert not isinstance(error.value, CorruptFileError)


def test_color_picture_in_the_place_of_a_label_is_refused(tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019", label=np.zeros((*HW, 3), np.uint8))
    with pytest.raises(DataError, match="is not a label"):
        read_sample(only_sample(tmp_path))


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "truncated": content[:middle],
        "last bytes missing": content[:-6],
        "bit flipped": content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :],
        "empty": b"",
        "not an image": b"<html>404 Not Found</html>",
    }[how]


@pytest.mark.parametrize("which", ["image", "label"])
@pytest.mark.parametrize(
    "how", ["truncated", "last bytes missing", "bit flipped", "empty", "not an image"]
)
def test_damaged_file_is_named_with_the_remedy(tmp_path, which, how):
    image, label = write_cityscapes(tmp_path, "ulm_000000_000019")
    path = image if which == "image" else label
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(CorruptFileError, match="cannot be read") as error:
        read_sample(only_sample(tmp_path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("how", ["truncated", "last bytes missing", "empty", "not an image"])
def test_damaged_photograph_is_named_with_the_remedy(tmp_path, how):
    image, _ = write_ade20k(tmp_path, 1)
    image.write_bytes(damage(image.read_bytes(), how))
    (sample,) = find_samples("ade20k", tmp_path, "training")
    with pytest.raises(CorruptFileError, match="cannot be read") as error:
        read_sample(sample)
    assert str(image) in str(error.value)


def test_file_that_vanished_is_named(tmp_path):
    image, _ = write_cityscapes(tmp_path, "ulm_000000_000019")
    sample = only_sample(tmp_path)
    image.unlink()
    with pytest.raises(CorruptFileError, match="No such file"):
        read_sample(sample)


def test_errors_of_this_package_are_value_errors():
    for error in (ConfigError, DataError, CorruptFileError):
        assert issubclass(error, JaxsegError)
        assert issubclass(error, ValueError)
