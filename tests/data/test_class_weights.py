"""Weights of classes: given, or from the classes' shares of the pixels."""

import cv2
import numpy as np
import pytest

from jaxseg.data.class_weights import (
    compute_class_weights,
    count_class_pixels,
    given_class_weights,
)
from jaxseg.data.source import trained_on
from jaxseg.errors import ConfigError, CorruptFileError, DataError
from support import label_exports
from support.tiny_datasets import custom_config

PIXELS = np.array([900, 90, 10, 0])


def test_inverse_weights_give_every_class_the_same_sum():
    weights = np.array(compute_class_weights("inverse", PIXELS))
    np.testing.assert_allclose(weights[:3] * PIXELS[:3], 1000 / 3, rtol=1e-5)
    assert weights[3] == 1


def test_enet_weights_are_those_of_its_paper_up_to_a_factor():
    weights = np.array(compute_class_weights("enet", PIXELS))
    expected = 1 / np.log(1.02 + PIXELS[:3] / 1000)
    np.testing.assert_allclose(weights[:3] / weights[0], expected / expected[0], rtol=1e-5)
    assert np.sum(weights * PIXELS) / 1000 == pytest.approx(1, rel=1e-5)


@pytest.fixture
def source(tmp_path):
    label_exports.write_images(tmp_path)
    lines = label_exports.index_masks(tmp_path)
    return trained_on(custom_config(tmp_path, "\n".join(lines)).data)


def test_every_label_is_read(source):
    counts = np.bincount(np.concatenate([label.ravel() for *_, label in label_exports.painted()]))
    np.testing.assert_array_equal(count_class_pixels(source, skip_corrupt=False), counts)


def test_damaged_labels_are_told_or_left_out_as_in_training(source, tmp_path):
    (tmp_path / "masks/train/scene_3.png").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"scene_3\.png"):
        count_class_pixels(source, skip_corrupt=False)
    others = [label.ravel() for name, _, label in label_exports.painted() if name != "scene_3"]
    counts = np.bincount(np.concatenate(others), minlength=8)
    np.testing.assert_array_equal(count_class_pixels(source, skip_corrupt=True), counts)


def test_labels_without_a_class_are_told(source, tmp_path):
    for mask in (tmp_path / "masks/train").iterdir():
        cv2.imwrite(str(mask), np.full(label_exports.HW, 255, np.uint8))
    with pytest.raises(DataError, match="no label has a pixel of any class"):
        count_class_pixels(source, skip_corrupt=False)


def test_numbers_are_taken_as_they_are():
    assert given_class_weights("1,2,0.5", ("a", "b", "c")) == (1.0, 2.0, 0.5)
    assert given_class_weights("", ("a", "b", "c")) == ()
    assert given_class_weights("enet", ("a", "b", "c")) is None


@pytest.mark.parametrize(
    "setting", ["1,2", "-1,2,3", "median", "1,x,2", "nan,1,1", "inf,1,1", "0,0,0"]
)
def test_what_is_neither_a_rule_nor_a_weight_for_each_class_is_refused(setting):
    with pytest.raises(ConfigError, match=r"loss\.class_weight=.*(of the 3 classes|3 numbers)"):
        given_class_weights(setting, ("a", "b", "c"))
