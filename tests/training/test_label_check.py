"""Labels of one class alone are told of, once; others are not."""

import numpy as np
import pytest

from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError
from jaxseg.train import check
from jaxseg.training.label_check import BATCHES, LabelCheck
from support.tiny_datasets import custom_config

CLASSES = ("ground", "tree")


def warnings_of(*batches, repeat=BATCHES):
    check = LabelCheck(CLASSES)
    labels = [np.array(values, np.int32).reshape(1, 1, -1) for values in batches]
    said = [check.warning(label, last=False) for label in labels * repeat]
    return [text for text in said if text]


def test_one_class_in_all_first_batches_is_told_once():
    (said,) = warnings_of([0, 0, 255], repeat=2 * BATCHES)
    assert "one class, 'ground'" in said


def test_labels_that_are_all_ignored_are_told():
    (said,) = warnings_of([255, 255])
    assert "hold no class" in said


def test_a_second_class_anywhere_is_enough():
    assert not warnings_of([0, 0], [0, 1])


def test_a_run_that_is_shorter_is_told_at_its_end():
    label_check = LabelCheck(CLASSES)
    labels = np.zeros((2, 4, 4), np.int32)
    assert label_check.warning(labels, last=False) is None
    assert "one class" in label_check.warning(labels, last=True)


def test_a_dataset_of_one_class_is_refused_with_the_remedy(tmp_path):
    config = custom_config(tmp_path, "0: ignore\n1: road\n2: road\n")
    config.batch_size = 8
    mesh = make_mesh({"data": 8, "fsdp": 1})
    with pytest.raises(ConfigError, match=r"one class, .road.\. .*`0: background` instead of"):
        check(config, mesh)
    config.model.decode_head.kind = "mask2former"
    check(config, mesh)
