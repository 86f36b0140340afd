"""Weights alone: what a checkpoint of an earlier version still gives."""

import json

import numpy as np

from jaxseg.checkpoints.weights import find_checkpoint, load_saved_config, save_weights
from support.tiny import tiny_config


def test_config_of_an_earlier_version_gets_the_names_of_this_one(tmp_path):
    config = json.loads(json.dumps(tiny_config().to_dict()))
    config["model"]["backbone"]["kind"] = "intern_image"
    config["model"]["decode_head"]["kind"] = "uper"
    del config["model"]["kernels"]
    del config["loss"]["terms"]
    points = config["loss"]["mask2former"]
    points["importance_ratio"] = points.pop("importance_sample_ratio")
    variables = {"params": {"a": np.zeros(1)}, "batch_stats": {}}
    save_weights(tmp_path / "run", variables, config)
    loaded = load_saved_config(find_checkpoint(tmp_path / "run"))
    assert loaded == tiny_config().to_dict()
