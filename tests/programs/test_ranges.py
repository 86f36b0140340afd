"""Numbers outside their range are refused when a config is read, with the range."""

import os
import subprocess
import sys

import pytest

from jaxseg.config import flatten_config, load_config
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.pretrained import find
from jaxseg.recipes.ranges import RANGES, Range
from support.runs import ROOT

RECIPE = "configs/ade20k.py:mask2former_beit_adapter_l_cocostuff"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("steps", "-3", "1 or more"),
        ("eval.every_steps", "0", "1 or more"),
        ("optim.lr", "-1.0", "0 or more"),
        ("optim.lr", "nan", "0 or more"),
        ("optim.ema_decay", "1.0", "from 0 and below 1"),
        ("data.scale_wh", "0,0", "1 or more"),
        ("data.ratio_range", "0.0,2.0", "above 0"),
        ("data.flip_probability", "1.5", "from 0 to 1"),
        ("seed", "-1", "0 or more"),
    ],
)
def test_a_value_outside_its_range_is_refused(key, value, allowed):
    with pytest.raises(ConfigError, match=rf"config\.{key}=.*: must be {allowed}$"):
        load_config(RECIPE, [f"--config.{key}={value}"])


def test_every_range_is_that_of_a_setting_which_keeps_it():
    recipes = (RECIPE, "configs/custom.py")
    settings = (load_config(recipe, classes_needed=False).to_dict() for recipe in recipes)
    missing = set(RANGES).difference(*map(flatten_config, settings))
    assert missing <= {"loss.auxiliary_weight"}


def test_ends_of_a_range():
    assert 0.0 in Range(0.0)
    assert 0.0 not in Range(0.0, without_low=True)
    assert 1.0 in Range(0.0, 1.0)
    assert 1.0 not in Range(0.0, 1.0, without_high=True)
    assert float("nan") not in Range(0.0)


def test_a_path_that_is_missing_tells_what_is_there(tmp_path):
    (tmp_path / "8").mkdir()
    with pytest.raises(CheckpointError, match=rf"{tmp_path} holds\n  8$"):
        find(tmp_path / "99")


def test_a_reader_may_stop_reading():
    command = f"{sys.executable} -m jaxseg zoo | head -1"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
