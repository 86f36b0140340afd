"""Settings of a tiny data pipeline, and batches compared."""

import numpy as np
from ml_collections import ConfigDict

from jaxseg.recipes.base import BASE


def make_config(root, **changes):
    settings = {
        "dataset": "cityscapes",
        "root": str(root),
        "train_split": "train",
        "val_split": "val",
        "val_dataset": "",
        "val_root": "",
        "scale_wh": (64, 32),
        "ratio_range": (0.5, 2.0),
        "crop_hw": (16, 32),
        "cat_max_ratio": 0.75,
        "augmentation": "mmseg",
        "flip_probability": 0.5,
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
        "test_scale_wh": (64, 32),
        "test_multiple": 1,
        "workers": 0,
        "prefetch": 2,
        "skip_corrupt": False,
    }
    return ConfigDict(BASE["data"] | settings | changes)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same_batches(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)
