"""Finding and reading samples: the layout of Cityscapes, its label table, and bad input."""

import cv2
import numpy as np
import pytest

from jaxseg.data import datasets
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
