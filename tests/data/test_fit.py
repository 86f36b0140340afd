"""Settings that are chosen from the images of a user's own data, unless they are given."""

import cv2
import numpy as np
import pytest

from jaxseg.config import load_config
from jaxseg.data.fit import fit_settings
from jaxseg.errors import ConfigError, CorruptFileError, DataError
from jaxseg.training.from_data import choose_from_data, describe_choice
from support.tiny_datasets import custom_config


def write(root, sizes):
    for folder in ("images", "masks"):
        (root / folder / "train").mkdir(parents=True)
    for number, hw in enumerate(sizes):
        cv2.imwrite(str(root / f"images/train/{number}.png"), np.zeros((*hw, 3), np.uint8))
        cv2.imwrite(str(root / f"masks/train/{number}.png"), np.zeros(hw, np.uint8))


def fitted(root, variant="upernet_internimage_t", **settings):
    (root / "names.txt").write_text("a\nb")
    settings = {"data.root": root, "data.classes": root / "names.txt"} | settings
    config = load_config(f"configs/custom.py:{variant}", settings)
    choose_from_data(config, None)
    return config


@pytest.mark.parametrize(
    ("hw", "side", "crop"),
    [
        ((360, 480), 352, 352),
        ((48, 64), 256, 256),
        ((3000, 4000), 1024, 512),
        ((900, 600), 608, 512),
    ],
)
def test_sizes_are_those_of_the_images(tmp_path, hw, side, crop):
    write(tmp_path, [hw] * 3)
    data = fitted(tmp_path).data
    assert data.scale_wh == data.test_scale_wh == (4 * side, side)
    assert data.crop_hw == (crop, crop)


def test_windows_have_the_size_of_the_crops(tmp_path):
    write(tmp_path, [(360, 480)])
    config = fitted(tmp_path, "upernet_deit_adapter_t")
    assert config.eval.crop_hw == config.data.crop_hw == (352, 352)
    assert config.eval.stride_hw == (234, 234)


def test_the_crops_of_beit_stay(tmp_path):
    write(tmp_path, [(360, 480)])
    config = fitted(tmp_path, "mask2former_beit_adapter_l")
    assert config.data.crop_hw == (640, 640)
    assert config.steps == 1000


def test_every_image_is_seen_a_hundred_times(tmp_path):
    write(tmp_path, [(8, 8)] * 400)
    config = fitted(tmp_path)
    assert (config.steps, config.eval.every_steps, config.optim.warmup_steps) == (2500, 250, 125)
    assert config.optim.lr == pytest.approx(6e-5)
    config = fitted(tmp_path, batch_size=4)
    assert config.steps == 10_000
    assert config.optim.lr == pytest.approx(1.5e-5)


def test_what_is_given_is_kept(tmp_path):
    write(tmp_path, [(360, 480)])
    config = fitted(tmp_path, **{"steps": 77, "data.crop_hw": "64,64", "optim.lr": 1e-3})
    assert (config.steps, config.data.crop_hw, config.optim.lr) == (77, (64, 64), 1e-3)
    assert config.eval.every_steps == 7
    assert "steps" not in config.data.fit
    assert fit_settings(fitted(tmp_path, **{"data.fit": ""})) == {}


def test_a_run_goes_on_with_what_was_chosen_first(tmp_path):
    write(tmp_path, [(360, 480)] * 400)
    first = fitted(tmp_path)
    for number in range(100):
        (tmp_path / f"images/train/{number}.png").unlink()
        (tmp_path / f"masks/train/{number}.png").unlink()
    again = custom_config(tmp_path, "a\nb")
    choose_from_data(again, first.to_dict())
    assert again.steps == first.steps == 2500
    assert "steps=2500" in describe_choice(again)["chosen from the data"]


def test_keys_that_are_never_chosen_are_refused(tmp_path):
    write(tmp_path, [(360, 480)])
    with pytest.raises(ConfigError, match=r"data\.fit=seed: only data\.scale_wh, .* can be chosen"):
        fitted(tmp_path, **{"data.fit": "seed"})


def test_images_without_labels_are_told(tmp_path):
    write(tmp_path, [(360, 480)])
    (tmp_path / "masks/train/0.png").unlink()
    with pytest.raises(DataError, match="have no label"):
        fitted(tmp_path)


def test_images_that_cannot_be_read_are_skipped_as_in_training(tmp_path):
    write(tmp_path, [(360, 480)] * 3)
    (tmp_path / "images/train/1.png").write_bytes(b"")
    with pytest.raises(CorruptFileError):
        fitted(tmp_path)
    assert fitted(tmp_path, **{"data.skip_corrupt": True}).data.crop_hw == (352, 352)


def test_keys_may_be_given_on_a_command_line(tmp_path):
    write(tmp_path, [(360, 480)])
    config = fitted(tmp_path, **{"data.fit": "steps,optim.lr"})
    assert (config.steps, config.data.crop_hw) == (1000, (512, 512))


def test_what_was_given_at_first_is_not_taken_from_the_checkpoint(tmp_path):
    write(tmp_path, [(360, 480)])
    first = fitted(tmp_path, steps=77)
    again = custom_config(tmp_path, "a\nb")
    choose_from_data(again, first.to_dict())
    assert again.steps == 40_000  # another one than in the checkpoint, which is refused then
    assert "steps" not in again.data.fit
