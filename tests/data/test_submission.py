"""Submissions are those of the reference, bit by bit, and need no labels."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import submission
from jaxseg.data.datasets import DATASETS, get_dataset
from jaxseg.data.samples import NamedSample
from jaxseg.errors import ConfigError
from support.reference_files import REFERENCE


def recorded(case):
    with np.load(REFERENCE / "protocol" / "eval.npz", allow_pickle=False) as file:
        fields = {k.removeprefix(f"{case}/"): file[k] for k in file if k.startswith(f"{case}/")}
    assert fields, f"no case {case}"
    return fields


def written(tmp_path, name, image, class_map):
    """The file that is written for an image, as (name, picture)."""
    sample = NamedSample("any", pathlib.Path(image), pathlib.Path(image), None)
    submission.write_class_map(tmp_path, get_dataset(name), sample, class_map)
    (path,) = tmp_path.iterdir()
    with Image.open(path) as picture:
        picture.load()
    path.unlink()
    return path.name, picture


@pytest.mark.reference
def test_files_for_cityscapes_are_those_of_the_reference(tmp_path):
    case = recorded("city_format")
    names = json.loads(str(case["names"]))
    for class_map, expected, name in zip(case["pred"], case["out"], names, strict=True):
        found, picture = written(tmp_path, "cityscapes", f"frankfurt/{name}", class_map)
        assert (found, picture.mode) == (name, "P")
        np.testing.assert_array_equal(np.asarray(picture), expected, strict=True)
        palette = np.reshape(picture.getpalette(), (-1, 3))
        np.testing.assert_array_equal(palette[: int(case["palette_len"])], case["palette"])


@pytest.mark.reference
def test_class_maps_before_the_ids_are_those_of_the_reference_with_train_ids():
    """`to_label_id=False` writes what the network says; the table alone makes the difference."""
    raw, ids = recorded("city_format")["out"], recorded("city_format_trainids")["out"]
    np.testing.assert_array_equal(submission.cityscapes_ids()[ids], raw, strict=True)


@pytest.mark.reference
def test_ids_of_cityscapes_are_those_of_the_reference():
    case = recorded("city_convert_label_id")
    np.testing.assert_array_equal(submission.cityscapes_ids()[case["inp"]], case["out"])


@pytest.mark.reference
def test_files_for_ade20k_are_those_of_the_reference(tmp_path):
    case = recorded("ade_evaluate_format")
    names = json.loads(str(case["names"]))
    for class_map, expected, name in zip(case["pred"], case["out"], names, strict=True):
        image = f"images/testing/{pathlib.Path(name).stem}.jpg"
        found, picture = written(tmp_path, "ade20k", image, class_map)
        assert (found, picture.mode) == (name, "L")
        np.testing.assert_array_equal(np.asarray(picture), expected, strict=True)


@pytest.mark.parametrize("name", sorted({*DATASETS} - {*submission.FORMATS}))
def test_other_datasets_have_no_form_for_submissions(name):
    with pytest.raises(ConfigError, match=f"submissions of {name}; .*cityscapes and ade20k"):
        submission.check_submission(get_dataset(name))
