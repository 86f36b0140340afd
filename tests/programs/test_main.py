"""Bad input on the command line: each ends with a message that says what, where and what to do."""

import subprocess
import sys

import pytest

from support.runs import ROOT, failure


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.root": "/nowhere"}, ("/nowhere does not exist", "leftImg8bit/train", "data.root")),
        ({"batch_size": 3, "optim.accumulation": 2}, ("batch_size=3", "multiple of 2")),
        ({"batch_size": 1}, ("batch norm needs two images",)),
        ({"data.crop_hw": "(16,64)"}, ("crop_hw=(16, 64)", "at least 32 pixels")),
        ({"mesh.fsdp": 2}, ("fsdp=2 does not fit 1 devices",)),
        ({"data.dataset": "atlantis"}, ("Unknown dataset 'atlantis'", "cityscapes")),
        ({"model.decode_head.num_classes": 7}, ("num_classes=7", "19 classes")),
        (
            {"model": "tiny", "model.auxiliary_head.num_classes": 7},
            ("auxiliary_head.num_classes=7", "19 classes"),
        ),
        ({"model.auxiliary_head.num_classes": 7}, ("there is no auxiliary_head in this recipe",)),
        ({"init": "/nowhere"}, ("config.init=/nowhere: there is no such file", "zoo:NAME")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_setting_that_cannot_work_is_named(command, tmp_path, changes, said):
    message = failure(command(tmp_path, **changes))
    assert all(part in message for part in said), message


def test_misspelt_override_suggests_the_right_one(command, tmp_path):
    message = failure(command(tmp_path, **{"optim.lrr": 1}))
    assert 'Did you mean "lr" instead of "lrr"?' in message


@pytest.mark.parametrize("key", ["model.backbon.remat", "optimm.lr"])
def test_misspelt_override_in_the_middle_suggests_the_right_one(command, tmp_path, key):
    assert "no such key" in failure(command(tmp_path, **{key: 1}))


def test_misspelt_override_like_no_other_key_is_named(command, tmp_path):
    assert "no such key: 'slide'\n" in failure(command(tmp_path, **{"eval.slide": 1}))


def test_missing_config_file_lists_the_installed_ones(tmp_path):
    message = failure(python("-m", "jaxseg.main", "--config", "configs/citscapes.py"))
    assert "configs/citscapes.py: no such file" in message
    assert "configs/cityscapes.py" in message


def test_unknown_variant_lists_those_there_are():
    message = failure(python("-m", "jaxseg.main", "--config", "configs/cityscapes.py:resnet"))
    assert "no variant 'resnet'" in message
    assert "upernet_internimage_t" in message


def test_config_is_found_beside_the_package_from_any_directory(tmp_path):
    call = python("-m", "jaxseg.main", "--config", "configs/cityscapes.py", "--mode=show")
    message = failure(call | {"cwd": tmp_path})
    # Found, shown, and only then the missing dataset.
    assert "data/cityscapes does not exist" in message


def test_unwritable_work_directory(command, tmp_path):
    (tmp_path / "file").touch()
    message = failure(command(tmp_path / "file" / "run"))
    assert "cannot write to the work directory" in message
    assert "--workdir" in message


def test_argument_that_is_no_flag_is_refused(command, tmp_path):
    call = command(tmp_path)
    message = failure(call | {"args": [*call["args"], "steps=3"]})
    assert "unexpected argument 'steps=3'; a setting is --config.KEY=VALUE" in message


def test_value_of_a_setting_may_be_an_argument_of_its_own(command, tmp_path):
    call = command(tmp_path)
    message = failure(call | {"args": [*call["args"], "--config.batch_size", "1"]})
    assert "batch norm needs two images" in message


def test_help_is_quick_and_imports_no_jax():
    code = "import sys, jaxseg.main; assert 'jax' not in sys.modules and 'cv2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def python(*arguments):
    return {"args": [sys.executable, *arguments], "cwd": ROOT, "text": True}
