"""Sizes that a model cannot take are named before anything is computed."""

import pytest

from jaxseg.config import load_config
from jaxseg.errors import ConfigError
from jaxseg.inference.image_sizes import check_image_sizes
from support.tiny import tiny_config

SLIDE = {"eval.mode": "slide", "eval.crop_hw": (64, 64), "eval.stride_hw": (32, 32)}


def check(kind, **changes):
    config = tiny_config(**changes)
    config.model.backbone.kind = kind
    check_image_sizes(config)


@pytest.mark.parametrize("kind", ["vit_adapter", "beit_adapter", "uniperceiver_adapter", "beit"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.crop_hw": (64, 60)}, r"config\.data\.crop_hw=64, 60: multiples of 32"),
        ({"data.test_multiple": 1}, r"config\.data\.test_multiple=1: multiples of 32"),
        (SLIDE | {"eval.crop_hw": (60, 64)}, r"config\.eval\.crop_hw=60, 64: multiples of 32"),
        (
            {"eval.ss.resize": "short_side"},
            r"eval\.ss\.resize=short_side .*multiples of 32",
        ),
    ],
)
def test_transformers_of_patches_take_multiples_of_32(kind, changes, said):
    with pytest.raises(ConfigError, match=said):
        check(kind, **{"data.test_multiple": 32} | changes)
    check(kind, **{"data.test_multiple": 32} | SLIDE)
    check(kind, **{"data.test_multiple": 32} | SLIDE | {"eval.ss.resize": "short_side"})


def test_internimage_takes_any_size():
    check("internimage", **SLIDE | {"data.crop_hw": (50, 61), "eval.crop_hw": (33, 47)})


@pytest.mark.parametrize("crop", [(64,), (64, "sixty"), (64, 16)])
def test_crops_that_are_no_sizes_are_named(crop):
    config = tiny_config()
    with config.ignore_type():
        config.data.crop_hw = crop
    with pytest.raises(ConfigError, match="two whole numbers of at least 32 pixels"):
        check_image_sizes(config)


def test_of_a_setting_that_is_given_twice_the_last_counts(config_file):
    twice = ["--config.data.crop_hw=(64, 96)", "--config.steps=3", "--config.data.crop_hw=(32, 32)"]
    config = load_config(config_file, twice)
    assert (config.data.crop_hw, config.steps) == ((32, 32), 3)
