"""A Mask2Former on InternImage through the programs: as the only one, it has no batch norm."""

import json
import shutil

import jax
import numpy as np
import pytest

from converters import convert, export_torch, verify
from converters.torch_files import torch_file, torch_writer
from jaxseg import parameter_paths
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device
from jaxseg.evaluate import evaluate_checkpoint
from jaxseg.models.segmentation_model import build_model
from jaxseg.train import train
from support.small_mask2former import mask2former_config as tiny_mask2former

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.full]


def stored(run, config):
    """The weights of the last checkpoint, by path."""
    variables = load_on_device(find_checkpoint(run), build_model(config.model))
    assert variables["batch_stats"] == {}
    return jax.tree.map(np.asarray, parameter_paths.by_path(variables))


@pytest.fixture
def config(scenes):
    config = tiny_mask2former().copy_and_resolve_references()
    config.update({"steps": 2, "checkpoint": {"every_steps": 1, "keep": 2}})
    config.data.root = str(scenes)
    return config


def test_from_a_file_to_training_and_back(config, tmp_path, capsys):
    weights = verify.filled_state_dict(config)
    torch_writer.write_torch_file(tmp_path / "file.pth", weights)
    published, run = tmp_path / "published", tmp_path / "run"
    convert.convert(tmp_path / "file.pth", config, published, "float32", ema=False)
    export_torch.main(["--checkpoint", str(published), "--output", str(tmp_path / "back.pth")])
    back = torch_file.read_torch_file(tmp_path / "back.pth")["state_dict"]
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)

    config.init = str(published)
    train(config, run)
    trained = stored(run, config)
    shutil.rmtree(run / "checkpoints" / "2")
    capsys.readouterr()
    train(config, run)
    assert "resumed, at step 1 of 2" in capsys.readouterr().out  # and not from the start again
    after = stored(run, config)
    for path, array in trained.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)

    scores = json.loads((run / "metrics.json").read_text())
    evaluate_checkpoint(run, tmp_path / "evaluated")
    assert json.loads((tmp_path / "evaluated" / "metrics.json").read_text()) == scores
