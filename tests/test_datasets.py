"""Finding and reading samples: the layouts and label tables of the datasets, and bad input."""

import types

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data import datasets
from jaxseg.data.evaluation import plan_batches
from jaxseg.errors import ConfigError, CorruptFileError, DataError, JaxsegError

HW = (6, 8)


def write(root, name, *, split="train", kind="labelIds", label=None, image_hw=HW):
    """One image and its label; the city is the first part of the name."""
    city = name.split("_")[0]
    image_path = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    label_path = root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png"
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3)).astype(np.uint8)
    label = np.full(HW, 7, np.uint8) if label is None else label
    for path, pixels in ((image_path, image), (label_path, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)
    return image_path, label_path


def write_photograph(root, image, label, *, pixels=0, palette=True):
    """A JPEG image and an indexed PNG label of HW, the label filled with `pixels`."""
    for name in (image, label):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*HW, 3)).astype(np.uint8)
    cv2.imwrite(str(root / image), noise)
    picture = Image.fromarray(np.broadcast_to(np.uint8(pixels), HW).copy())
    if palette:
        picture = picture.convert("P")
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    picture.save(root / label)


def write_ade20k(root, number, *, split="training", pixels=0):
    kind = {"training": "train", "validation": "val"}[split]
    name = f"{split}/ADE_{kind}_{number:08d}"
    image, label = f"images/{name}.jpg", f"annotations/{name}.png"
    write_photograph(root, image, label, pixels=pixels, palette=False)
    return root / image, root / label


def only_sample(root):
    (sample,) = datasets.find_samples("cityscapes", root, "train")
    return sample


def test_cityscapes_has_19_classes_with_a_colour_each():
    dataset = datasets.CITYSCAPES
    assert len(dataset.classes) == 19
    assert dataset.palette.shape == (19, 3)
    assert dataset.palette.dtype == np.uint8
    assert len(np.unique(dataset.palette, axis=0)) == 19
    assert dict(zip(dataset.classes, dataset.palette.tolist(), strict=True))["car"] == [0, 0, 142]


def test_raw_ids_become_train_ids():
    train_ids, raw_ids = (form.train_ids for form in datasets.CITYSCAPES.label_formats)
    classes = datasets.CITYSCAPES.classes
    named = {7: "road", 11: "building", 19: "traffic light", 26: "car", 31: "train", 33: "bicycle"}
    assert {raw: classes[raw_ids[raw]] for raw in named} == named
    assert sorted(set(raw_ids[:34])) == [*range(19), 255]
    assert (raw_ids[[0, 1, 4, 9, 10, 14, 18, 29, 30, 255]] == 255).all()
    assert (raw_ids[34:255] == datasets.UNKNOWN).all()
    assert train_ids[:19].tolist() == list(range(19))
    assert (train_ids[19:255] == datasets.UNKNOWN).all()


def test_samples_are_found_in_all_cities_in_the_order_of_their_paths(tmp_path):
    for name in ("ulm_000001_000019", "aachen_000000_000019", "aachen_000003_000019"):
        write(tmp_path, name)
    write(tmp_path, "bonn_000000_000019", split="val")
    samples = datasets.find_samples("cityscapes", str(tmp_path), "train")
    assert [sample.name for sample in samples] == [
        *("aachen_000000_000019", "aachen_000003_000019", "ulm_000001_000019")
    ]
    assert samples == datasets.find_samples("cityscapes", tmp_path, "train")


def test_hidden_files_and_other_label_files_are_passed_over(tmp_path):
    image, _ = write(tmp_path, "ulm_000000_000019")
    write(tmp_path, "ulm_000000_000019", kind="instanceIds")
    (image.parent / f"._{image.name}").write_bytes(b"what some systems leave behind")
    assert only_sample(tmp_path).label.name == "ulm_000000_000019_gtFine_labelIds.png"


def test_ready_made_train_ids_are_preferred(tmp_path):
    write(tmp_path, "ulm_000000_000019", label=np.full(HW, 26, np.uint8))
    assert (datasets.read_label(only_sample(tmp_path)) == 13).all()
    write(tmp_path, "ulm_000000_000019", kind="labelTrainIds", label=np.full(HW, 18, np.uint8))
    assert (datasets.read_label(only_sample(tmp_path)) == 18).all()


def test_image_is_bgr_and_label_is_mapped(tmp_path):
    raw = np.arange(HW[0] * HW[1], dtype=np.uint8).reshape(HW) % 34
    raw[0, 0] = 255
    image_path, _ = write(tmp_path, "ulm_000000_000019", label=raw)
    image, label = datasets.read_sample(only_sample(tmp_path))
    np.testing.assert_array_equal(image, cv2.imread(str(image_path)), strict=True)
    expected = datasets.CITYSCAPES.label_formats[1].train_ids[raw]
    np.testing.assert_array_equal(label, expected, strict=True)


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    write(tmp_path / "disk", "ulm_000000_000019")
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "root" / kind / "train").mkdir(parents=True)
        link = tmp_path / "root" / kind / "train" / "ulm"
        link.symlink_to(tmp_path / "disk" / kind / "train" / "ulm")
    assert datasets.read_sample(only_sample(tmp_path / "root"))[1].shape == HW


def test_coarse_data_have_their_labels_in_a_folder_of_their_own(tmp_path):
    write(tmp_path, "ulm_000000_000019")
    image, label = write(tmp_path, "erlangen_000000_000000", split="train_extra")
    refined = tmp_path / "refinement_final" / "train_extra" / "erlangen" / label.name
    refined.parent.mkdir(parents=True)
    label.rename(refined)
    samples = datasets.find_samples("cityscapes", tmp_path, "train+train_extra")
    assert [sample.name for sample in samples] == ["ulm_000000_000019", "erlangen_000000_000000"]
    assert (samples[1].image, samples[1].label) == (image, refined)


def test_splits_are_concatenated_in_the_order_given(tmp_path):
    for name in ("ulm_000001_000019", "ulm_000002_000019"):
        write(tmp_path, name)
    write(tmp_path, "aachen_000000_000019", split="val")
    train, val = (
        datasets.find_samples("cityscapes", tmp_path, split) for split in ("train", "val")
    )
    assert datasets.find_samples("cityscapes", tmp_path, "train+val") == train + val
    assert datasets.find_samples("cityscapes", tmp_path, "val+train") == val + train


def test_ade20k_has_150_classes_and_ignores_the_raw_zero():
    dataset = datasets.get("ade20k")
    assert len(dataset.classes) == len(set(dataset.classes)) == 150
    assert dataset.palette.shape == (150, 3)
    named = {0: "wall", 7: "bed", 44: "chest of drawers", 81: "towel", 149: "flag"}
    assert {index: dataset.classes[index] for index in named} == named
    assert dataset.palette[[0, 149]].tolist() == [[120, 120, 120], [92, 0, 255]]
    table = dataset.label_formats[0].train_ids
    assert table[:151].tolist() == [255, *range(150)]
    assert (table[151:255] == datasets.UNKNOWN).all()
    assert table[255] == 255


def test_ade20k_is_read_as_released(tmp_path):
    for number in (3, 1):
        write_ade20k(tmp_path, number, pixels=np.array([0, 1, 2, 3, 4, 5, 6, 150]))
    write_ade20k(tmp_path, 2, split="validation")
    samples = datasets.find_samples("ade20k", tmp_path, "training")
    assert [sample.name for sample in samples] == ["ADE_train_00000001", "ADE_train_00000003"]
    image, label = datasets.read_sample(samples[0])
    np.testing.assert_array_equal(image, cv2.imread(str(samples[0].image)), strict=True)
    assert label[0].tolist() == [255, 0, 1, 2, 3, 4, 5, 149]
    (sample,) = datasets.find_samples("ade20k", tmp_path, "validation")
    assert sample.name == "ADE_val_00000002"


MAPILLARY = {"training": "aZ_0", "validation": "Bx-1"}  # a file of each split


@pytest.mark.parametrize("folder", ["v1.2/labels", "labels"])
def test_mapillary_is_read_as_released_old_and_new(tmp_path, folder):
    raw = {"training": [2, 13, 24, 41, 19, 22, 65, 4], "validation": 55}
    for split, name in MAPILLARY.items():
        image, label = f"{split}/images/{name}.jpg", f"{split}/{folder}/{name}.png"
        write_photograph(tmp_path, image, label, pixels=raw[split])
        write_photograph(tmp_path, image, f"{split}/v2.0/labels/{name}.png", pixels=99)
    find = datasets.find_samples
    samples = find("mapillary_to_cityscapes", tmp_path, "training+validation")
    assert [sample.name for sample in samples] == list(MAPILLARY.values())
    first, second = (datasets.read_sample(sample)[1] for sample in samples)
    assert first[0].tolist() == [1, 0, 0, 0, 11, 12, 255, 255]
    assert (second == datasets.get("cityscapes").classes.index("car")).all()


def test_mapillary_prefers_the_newer_folder(tmp_path):
    for folder in ("v1.2/labels", "labels"):
        write_photograph(tmp_path, "training/images/a.jpg", f"training/{folder}/a.png")
    (sample,) = datasets.find_samples("mapillary_to_cityscapes", tmp_path, "training")
    assert sample.label == tmp_path / "training/v1.2/labels/a.png"


def test_mapillary_has_the_classes_and_colours_of_cityscapes():
    mapillary, cityscapes = map(datasets.get, ("mapillary_to_cityscapes", "cityscapes"))
    assert mapillary.classes == cityscapes.classes
    np.testing.assert_array_equal(mapillary.palette, cityscapes.palette)


def write_coco_stuff(root, name, kind, *, pixels=0):
    image, label = f"images/{name}.jpg", f"annotations/{name}{kind}.png"
    write_photograph(root, image, label, pixels=pixels, palette=False)
    return root / label


@pytest.mark.parametrize("name", ["coco_stuff164k", "coco_stuff10k"])
def test_coco_stuff_has_171_classes(name):
    dataset = datasets.get(name)
    assert len(dataset.classes) == len(set(dataset.classes)) == 171
    named = {0: "person", 11: "stop sign", 79: "toothbrush", 80: "banner", 170: "wood"}
    assert {index: dataset.classes[index] for index in named} == named
    assert dataset.palette.shape == (171, 3)
    assert dataset.palette[[0, 2, 170]].tolist() == [[0, 192, 64], [0, 64, 96], [64, 64, 0]]


def test_coco_stuff_164k_is_read_as_released(tmp_path):
    raw = [0, 10, 12, 89, 91, 180, 181, 255]
    label = write_coco_stuff(tmp_path, "train2017/000000000009", "", pixels=raw)
    (sample,) = datasets.find_samples("coco_stuff164k", tmp_path, "train2017")
    assert (sample.name, sample.label) == ("000000000009", label)
    assert datasets.read_sample(sample)[1][0].tolist() == [0, 10, 11, 79, 80, 169, 170, 255]


def test_every_class_of_coco_stuff_164k_has_one_raw_id():
    table = datasets.get("coco_stuff164k").label_formats[1].train_ids
    unused = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    assert np.delete(table[:182], unused).tolist() == list(range(171))
    assert (table[[*unused, *range(182, 255)]] == datasets.UNKNOWN).all()


def test_coco_stuff_164k_prefers_converted_labels(tmp_path):
    for kind in ("", "_labelTrainIds"):
        label = write_coco_stuff(tmp_path, "val2017/1", kind, pixels=170)
    (sample,) = datasets.find_samples("coco_stuff164k", tmp_path, "val2017")
    assert sample.label == label
    assert (datasets.read_label(sample) == 170).all()


def test_coco_stuff_10k_stores_the_unlabelled_as_zero(tmp_path):
    raw = [0, 1, 2, 3, 80, 81, 170, 171]
    write_coco_stuff(tmp_path, "test2014/COCO_train2014_1", "_labelTrainIds", pixels=raw)
    (sample,) = datasets.find_samples("coco_stuff10k", tmp_path, "test2014")
    assert datasets.read_sample(sample)[1][0].tolist() == [255, 0, 1, 2, 79, 80, 169, 170]


def test_message_says_where_the_labels_of_coco_stuff_10k_come_from(tmp_path):
    write_coco_stuff(tmp_path, "train2014/1", "", pixels=1)
    with pytest.raises(DataError, match=r"1 of 1 .*\n.*/1\.jpg") as error:
        datasets.find_samples("coco_stuff10k", tmp_path, "train2014")
    assert "coco_stuff10k.py makes these labels" in str(error.value)
    assert "nothing has to be converted" not in str(error.value)


PASCAL_CONTEXT = ("pascal_context59", "pascal_context60")
PASCAL_LISTS = "ImageSets/SegmentationContext"


def write_pascal_context(root, names, *, split="train", listed=None, pixels=0):
    """Images and labels of these names, and the list of the split with those `listed`."""
    for name in names:
        files = f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png"
        write_photograph(root, *files, pixels=pixels)
    path = root / PASCAL_LISTS / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in (names if listed is None else listed)))
    return path


def test_pascal_context_60_is_59_and_the_background():
    without, with_background = map(datasets.get, PASCAL_CONTEXT)
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
    ("name", "expected"),
    [("pascal_context59", [255, 0, 1, 2, 3, 57, 58, 255])]
    + [("pascal_context60", [0, 1, 2, 3, 4, 58, 59, 255])],
)
def test_pascal_context_reads_one_file_both_ways(tmp_path, name, expected):
    write_pascal_context(tmp_path, ["2008_000002"], pixels=[0, 1, 2, 3, 4, 58, 59, 255])
    (sample,) = datasets.find_samples(name, tmp_path, "train")
    image, label = datasets.read_sample(sample)
    np.testing.assert_array_equal(image, cv2.imread(str(sample.image)), strict=True)
    assert label[0].tolist() == expected


@pytest.mark.parametrize("name", PASCAL_CONTEXT)
def test_lists_say_which_images_make_a_split_and_in_which_order(tmp_path, name):
    images = ("2008_000002", "2008_000003", "2009_000001", "2010_000009")
    write_pascal_context(tmp_path, images, listed=["2010_000009", "", " 2008_000003 "])
    write_pascal_context(tmp_path, [], split="val", listed=["2008_000002"])
    (tmp_path / "SegmentationClassContext/2009_000001.png").unlink()  # in neither list
    samples = datasets.find_samples(name, tmp_path, "train+val")
    assert [s.name for s in samples] == ["2010_000009", "2008_000003", "2008_000002"]


def test_missing_list_shows_which_there_are(tmp_path):
    path = write_pascal_context(tmp_path, ["a"])
    with pytest.raises(
        DataError, match="No list of the pascal_context59 split 'trainval'"
    ) as error:
        datasets.find_samples("pascal_context59", tmp_path, "trainval")
    message = str(error.value)
    assert f"    {PASCAL_LISTS}/trainval.txt\n" in message
    assert f"{path.parent}/ holds train.txt" in message
    assert "pascal_context.py" in message


def test_listed_images_that_are_missing_are_counted_and_named(tmp_path):
    path = write_pascal_context(tmp_path, ["a"], listed=["a", *"bcdefgh"])
    with pytest.raises(DataError, match=r"7 of 8 .* are missing") as error:
        datasets.find_samples("pascal_context60", tmp_path, "train")
    message = str(error.value)
    assert f"{tmp_path}/JPEGImages/b.jpg" in message
    assert "and 2 more" in message
    assert f"{path} names them" in message


def test_empty_list_is_refused(tmp_path):
    path = write_pascal_context(tmp_path, ["a"], listed=[])
    with pytest.raises(DataError, match="names no images") as error:
        datasets.find_samples("pascal_context60", tmp_path, "train")
    assert str(path) in str(error.value)


def test_listed_image_without_label_is_named(tmp_path):
    write_pascal_context(tmp_path, ["a", "b"])
    (tmp_path / "SegmentationClassContext/b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 .* have no label:\n.*JPEGImages/b.jpg") as error:
        datasets.find_samples("pascal_context59", tmp_path, "train")
    assert "pascal_context.py" in str(error.value)


def test_another_dataset_may_be_evaluated_on_than_trained_on():
    data = types.SimpleNamespace(
        dataset="mapillary_to_cityscapes",
        root="maps",
        train_split="training+validation",
        val_dataset="cityscapes",
        val_root="city",
        val_split="val",
    )
    assert str(datasets.trained_on(data)) == "mapillary_to_cityscapes in maps, training+validation"
    assert str(datasets.evaluated_on(data)) == "cityscapes in city, val"
    data.val_dataset = data.val_root = ""
    assert str(datasets.evaluated_on(data)) == "mapillary_to_cityscapes in maps, val"


def test_photograph_turned_by_its_metadata_is_planned_as_it_is_read(tmp_path):
    path, _ = write_ade20k(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.zeros(HW[::-1], np.uint8)).save(path, exif=exif)
    write_ade20k(tmp_path, 2)
    samples = datasets.find_samples("ade20k", tmp_path, "training")
    assert [datasets.read_sample(sample)[0].shape[:2] for sample in samples] == [HW, HW]
    assert plan_batches(samples, 2) == [[0, 1]]


def test_unknown_dataset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'cityscape'.*cityscapes"):
        datasets.find_samples("cityscape", ".", "train")


def test_missing_root_shows_the_tree_expected_and_what_is_there(tmp_path):
    (tmp_path / "datasets").mkdir()
    with pytest.raises(DataError) as error:
        datasets.find_samples("cityscapes", tmp_path / "cityscapes", "train")
    message = str(error.value)
    assert "leftImg8bit/train/<city>/*_leftImg8bit.png" in message
    assert "gtFine/train/<city>/*_gtFine_labelTrainIds.png or *_gtFine_labelIds.png" in message
    assert "cityscapes does not exist" in message
    assert f"{tmp_path}/ holds datasets/" in message
    assert "data.root" in message
    assert f"python -m jaxseg.data.synthetic --output {tmp_path}/cityscapes" in message


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
    ],
)
def test_the_tree_of_every_dataset_and_split_is_shown(tmp_path, dataset, split, expected):
    with pytest.raises(DataError) as error:
        datasets.find_samples(dataset, tmp_path, split)
    message = str(error.value)
    assert all(f"    {line}" in message for line in expected), message
    assert f"{tmp_path}/ holds nothing" in message
    assert ("synthetic" in message) == (dataset == "cityscapes")


def test_the_missing_one_of_several_splits_is_named(tmp_path):
    write(tmp_path, "ulm_000000_000019")
    write(tmp_path, "erlangen_000000_000000", split="train_extra")  # the label is in gtFine
    with pytest.raises(DataError, match=r"1 of 1 .* 'train_extra' have no label") as error:
        datasets.find_samples("cityscapes", tmp_path, "train+train_extra")
    assert f"{tmp_path}/refinement_final/ is missing" in str(error.value)


def test_empty_set_shows_where_the_tree_ends(tmp_path):
    write(tmp_path, "ulm_000000_000019")
    with pytest.raises(DataError) as error:
        datasets.find_samples("cityscapes", tmp_path, "val")
    message = str(error.value)
    assert "'val'" in message
    assert f"{tmp_path}/leftImg8bit/ holds train/" in message
    assert f"{tmp_path}/leftImg8bit/val/ is missing" in message


def test_images_without_labels_are_counted_and_named(tmp_path):
    for index in range(8):
        _, label = write(tmp_path, f"ulm_{index:06d}_000019")
        if index:
            label.unlink()
    with pytest.raises(DataError, match="7 of 8") as error:
        datasets.find_samples("cityscapes", tmp_path, "train")
    message = str(error.value)
    assert "ulm_000001_000019_leftImg8bit.png" in message
    assert "ulm_000000_000019_leftImg8bit.png" not in message
    assert "and 2 more" in message
    assert "nothing has to be converted" in message


def test_label_of_another_size_names_both_files_and_sizes(tmp_path):
    image, label = write(tmp_path, "ulm_000000_000019", image_hw=(12, 16))
    with pytest.raises(DataError, match="size") as error:
        datasets.read_sample(only_sample(tmp_path))
    assert f"{image}: (12, 16)" in str(error.value)
    assert f"{label}: (6, 8)" in str(error.value)


def test_label_value_outside_the_table_is_named_with_its_file(tmp_path):
    raw = np.full(HW, 7, np.uint8)
    raw[0, :5] = (40, 41, 42, 200, 254)
    _, label = write(tmp_path, "ulm_000000_000019", label=raw)
    with pytest.raises(DataError, match=r"40-42, 200, 254.*known: 0-33, 255") as error:
        datasets.read_sample(only_sample(tmp_path))
    assert str(label) in str(error.value)
    assert not isinstance(error.value, CorruptFileError)


def test_colour_picture_in_the_place_of_a_label_is_refused(tmp_path):
    write(tmp_path, "ulm_000000_000019", label=np.zeros((*HW, 3), np.uint8))
    with pytest.raises(DataError, match="is no label"):
        datasets.read_sample(only_sample(tmp_path))


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
    image, label = write(tmp_path, "ulm_000000_000019")
    path = image if which == "image" else label
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(CorruptFileError, match="skip_corrupt") as error:
        datasets.read_sample(only_sample(tmp_path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("how", ["truncated", "last bytes missing", "empty", "not an image"])
def test_damaged_photograph_is_named_with_the_remedy(tmp_path, how):
    image, _ = write_ade20k(tmp_path, 1)
    image.write_bytes(damage(image.read_bytes(), how))
    (sample,) = datasets.find_samples("ade20k", tmp_path, "training")
    with pytest.raises(CorruptFileError, match="skip_corrupt") as error:
        datasets.read_sample(sample)
    assert str(image) in str(error.value)


def test_file_that_vanished_is_named(tmp_path):
    image, _ = write(tmp_path, "ulm_000000_000019")
    sample = only_sample(tmp_path)
    image.unlink()
    with pytest.raises(CorruptFileError, match="No such file"):
        datasets.read_sample(sample)


def test_errors_of_this_package_are_value_errors():
    for error in (ConfigError, DataError, CorruptFileError):
        assert issubclass(error, JaxsegError)
        assert issubclass(error, ValueError)
