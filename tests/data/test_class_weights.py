"""Weights of classes: given, or from the classes' shares of the pixels."""

import numpy as np
import pytest

from jaxseg.data.class_weights import compute_class_weights, find_class_weights
from jaxseg.data.source import trained_on
from jaxseg.errors import ConfigError, DataError
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


def test_a_rule_reads_every_label(source):
    counts = np.bincount(np.concatenate([label.ravel() for *_, label in label_exports.painted()]))
    assert find_class_weights("enet", source) == compute_class_weights("enet", counts)


def test_faults_in_labels_are_told(source, tmp_path):
    (tmp_path / "masks/train/scene_3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"class_weight=enet reads every label.*\n.*scene_3\.png"):
        find_class_weights("enet", source)


def test_numbers_are_taken_as_they_are(source):
    assert find_class_weights("1,2,3,4,5,6,7,0.5", source)[-2:] == (7.0, 0.5)
    assert find_class_weights("", source) == ()


@pytest.mark.parametrize("setting", ["1,2", "-1,2,3,4,5,6,7,8", "median", "1,x"])
def test_what_is_neither_a_rule_nor_a_weight_for_each_class_is_refused(source, setting):
    with pytest.raises(ConfigError, match=r"loss\.class_weight=.* (enet, or|8) numbers"):
        find_class_weights(setting, source)
