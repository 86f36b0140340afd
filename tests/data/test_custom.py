"""Your own images and masks: class names from a file, and what else follows from it."""

import json

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.custom import VARIANTS, get_config
from jaxseg.config import load_config, override_config
from jaxseg.data.datasets.description import IGNORE, UNKNOWN
from jaxseg.data.samples import read_sample
from jaxseg.data.source import evaluated_on, trained_on
from jaxseg.errors import ConfigError, DataError
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.zoo import catalogue
from support.runs import ROOT, run
from support.tiny_datasets import OWN_CONFIG, custom_config, write_photograph


def table_of(config):
    return trained_on(config.data).dataset.label_formats[0].train_ids


def test_classes_are_the_lines_of_the_file(tmp_path):
    config = custom_config(tmp_path, "# what there is\nroad\n\n  car \n")
    dataset = trained_on(config.data).dataset
    assert dataset.classes == ("road", "car")
    assert dataset.palette.shape == (2, 3)
    assert table_of(config)[[0, 1, 2, 254, 255]].tolist() == [0, 1, UNKNOWN, UNKNOWN, IGNORE]


def test_values_may_be_given_shared_and_ignored(tmp_path):
    config = custom_config(tmp_path, "0: ignore\n7: road\n11: car\n255: road\n")
    assert trained_on(config.data).dataset.classes == ("road", "car")
    assert table_of(config)[[0, 1, 7, 11, 255]].tolist() == [IGNORE, UNKNOWN, 0, 1, 0]


def test_every_head_has_as_many_outputs_as_there_are_classes(tmp_path):
    config = custom_config(tmp_path, "a\nb\nc\n")
    assert config.model.decode_head.num_classes == config.model.auxiliary_head.num_classes == 3


def test_what_a_checkpoint_stores_needs_the_file_no_more(tmp_path):
    config = custom_config(tmp_path, "a\nb\n")
    (tmp_path / "names.txt").unlink()
    stored = ConfigDict(json.loads(json.dumps(config.to_dict())))
    override_config(stored, [])
    assert evaluated_on(stored.data).dataset.classes == ("a", "b")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", r"names\.txt lists no classes"),
        ("# a\n\n", r"names\.txt lists no classes"),
        ("a\nb\na\n", "'a' is listed twice"),
        ("0: a\nb\n", "'b' has no value"),
        ("0: a\n0: b\n", "the value 0 is listed twice"),
        ("256: a\n", "256 is above"),
        ("0: ignore\n", "lists 0 classes"),
        ("\n".join(map(str, range(255))), "lists 255 classes"),
    ],
)
def test_a_file_that_lists_no_classes_is_refused(tmp_path, lines, said):
    with pytest.raises(ConfigError, match=said):
        custom_config(tmp_path, lines)


def test_without_a_file_one_is_asked_for():
    with pytest.raises(ConfigError, match=r"config\.data\.classes=FILE is needed"):
        load_config("configs/custom.py")


def test_marks_of_windows_editors_are_no_part_of_the_names(tmp_path):
    lines = custom_config(tmp_path, "\ufeff0: a\r\n255: b\r\n").data.class_lines
    assert lines == ("0: a", "255: b")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"classes=.*none\.txt cannot be read: .*No such file"):
        custom_config(tmp_path, "a", classes=tmp_path / "none.txt")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_starts_from_published_weights_of_the_same_backbone(variant):
    config = get_config(variant)  # before the file is read
    check_image_sizes(config)
    if variant == "tiny":
        assert config.init == ""
        return
    head, _, backbone = variant.partition("_")
    if backbone.startswith("dinov"):
        original = load_config(f"configs/ade20k.py:{variant}")
        assert config.init == original.init
        assert config.model.backbone.to_dict() == original.model.backbone.to_dict()
        assert config.optim.freeze == original.optim.freeze
        return
    if head == "linear" or variant.startswith("mask2former_internimage"):
        original = load_config(f"configs/ade20k.py:upernet_{backbone}")
        assert config.init == original.init
        assert config.model.backbone.to_dict() == original.model.backbone.to_dict()
        return
    published = catalogue.find_model(config.init.removeprefix("zoo:"))
    original, own = (
        settings.model.to_dict() for settings in (load_config(published.config), config)
    )
    for model in (original, own):  # the number of classes is that of the data
        del model["decode_head"]["num_classes"]
    assert own == original


def test_images_and_masks_are_found_below_their_folders(tmp_path):
    for name in ("b", "day/a"):
        files = f"images/train/{name}.jpg", f"masks/train/{name}.png"
        write_photograph(tmp_path, *files, pixels=[0, 1, 255, 0, 1, 255, 0, 1])
    samples = trained_on(custom_config(tmp_path, "a\nb\n").data).samples()
    assert [sample.name for sample in samples] == ["b", "a"]
    assert read_sample(samples[0])[1][0].tolist() == [0, 1, 255, 0, 1, 255, 0, 1]


def test_images_of_another_suffix_are_shown_and_the_setting_named(tmp_path):
    write_photograph(tmp_path, "images/train/1.png", "masks/train/1.png")
    config = custom_config(tmp_path, "a\nb\n", image_suffix=".jpg")
    with pytest.raises(DataError, match=r"(?s)holds 1\.png.*data\.image_suffix"):
        trained_on(config.data).samples()


def test_folders_and_suffixes_are_settings(tmp_path):
    write_photograph(tmp_path, "train/rgb/1.png", "train/truth/1_mask.png", pixels=1)
    layout = {"images": "{split}/rgb", "labels": "{split}/truth"}
    layout |= {"image_suffix": ".png", "label_suffix": "_mask.png"}
    (sample,) = trained_on(custom_config(tmp_path, "a\nb\n", **layout).data).samples()
    assert (read_sample(sample)[1] == 1).all()


def test_an_image_without_a_mask_is_named_with_the_settings(tmp_path):
    write_photograph(tmp_path, "images/train/a.jpg", "masks/val/a.png")
    with pytest.raises(DataError, match=r"1 of 1 custom .*\n.*a\.jpg") as error:
        trained_on(custom_config(tmp_path, "a\nb\n").data).samples()
    assert "masks/train/*.png" in str(error.value)
    assert "label_suffix" in str(error.value)


@pytest.mark.full
def test_training_starts_from_another_model_with_fresh_outputs_and_says_so(command, tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "abcd":
            for folder, shape in (("images", (64, 128, 3)), ("masks", (64, 128))):
                path = tmp_path / folder / split / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256 if folder == "images" else 2, shape)
                cv2.imwrite(str(path), pixels.astype(np.uint8))
    (tmp_path / "names.txt").write_text("background\ncell\n")
    (tmp_path / "tiny.py").write_text(OWN_CONFIG.format(tests=str(ROOT / "tests")))
    street = command(tmp_path / "street", **{"steps": 1, "eval.every_steps": 9})
    run(street)
    mine = command(
        tmp_path / "mine",
        **{"steps": 2, "init": tmp_path / "street"},
        **{"data.root": tmp_path, "data.classes": tmp_path / "names.txt"},
    )
    mine["args"][mine["args"].index("--config") + 1] = str(tmp_path / "tiny.py")
    printed = run(mine)
    # A kernel and a bias.
    assert "2 tensors as initialized: another number of classes" in printed
    assert "background" in printed
    assert "val mIoU" in printed
