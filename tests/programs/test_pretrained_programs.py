"""Files of pre-trained ViTs through the programs: conversion, the start of training, and back."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from converters import convert, export_torch
from converters.torch_files import torch_file, torch_writer
from jaxseg import parameter_paths
from jaxseg.checkpoints import initial_weights
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device
from jaxseg.models.segmentation_model import build_model, variable_shapes
from pallas_kernels.relative_positions import relative_position_index
from support import published
from support.runs import ROOT
from support.tiny_vits import (
    BEIT,
    BEIT_ADAPTER,
    NO_ADAPTER,
    NO_HEADS,
    VIT,
    beit,
    config_of,
    deit,
    match,
    segmentor_of,
    wanted_by,
)

PUBLISHED = [path.stem for path in published.MANIFESTS if "_beit" in path.stem]

CONFIG = """\
import sys
sys.path.insert(0, {tests!r})
from support.tiny_vits import config_of
def get_config(variant="tiny"):
    return config_of({backbone!r})
"""


def converted(tensors, backbone, folder, *options):
    """The directory of a run converted from a file with these tensors."""
    (folder / "tiny.py").write_text(CONFIG.format(tests=str(ROOT / "tests"), backbone=backbone))
    torch_writer.write_torch_file(folder / "file.pth", tensors)
    files = ["--checkpoint", str(folder / "file.pth"), "--config", str(folder / "tiny.py")]
    convert.main([*files, "--output", str(folder / "run"), *options])
    return folder / "run"


def stored(run, config):
    model = build_model(config.model)
    return parameter_paths.by_path(load_on_device(find_checkpoint(run), model))


def fresh(config):
    """Variables over all devices that no file holds."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    wanted = wanted_by(config.model.to_dict())
    leaves = {path: np.full(shape, 7, np.float32) for path, shape in wanted.items()}
    return parameter_paths.nested(jax.device_put(leaves, everywhere))


def check_given(variables, weights, dtype=np.float32):
    for path, array in weights.arrays.items():
        expected = array if path.startswith("batch_stats/") else array.astype(dtype)
        np.testing.assert_array_equal(variables[path], expected.astype(np.float32), err_msg=path)


def test_converted_vit_says_what_became_of_every_tensor(tmp_path, capsys):
    config, tensors = config_of(VIT), deit()
    run = converted(tensors, VIT, tmp_path)
    printed = capsys.readouterr().out
    counts = dict(re.findall(r"(\d+)  (.*)", printed)[::-1])
    assert counts["8"] == "layer scale 1: the pre-training had none"
    for why in ("class token, which the model does not have", NO_ADAPTER, *NO_HEADS):
        assert why in printed
    assert "train it before use" in printed
    report = json.loads((run / "conversion.json").read_text())
    assert report["used"].keys() | report["ignored"].keys() == tensors.keys()

    variables = stored(run, config)
    check_given(variables, match(tensors, config))
    np.testing.assert_array_equal(variables["params/backbone/blocks_3/gamma2"], 1)
    np.testing.assert_array_equal(variables["params/backbone/interactions_0/injector/gamma"], 0)
    np.testing.assert_array_equal(variables["params/backbone/norm3/scale"], 1)
    assert variables["params/backbone/spm/stem_0/kernel"].std() > 0


def test_converted_beit_has_resized_tables_and_halves_in_bfloat16(tmp_path, capsys):
    config, tensors = config_of(BEIT), beit()
    run = converted(tensors, BEIT, tmp_path, "--dtype", "bfloat16")
    assert re.search(
        r"derived +4  relative positions, resized from 6 x 6 to 8 x 8 patches",
        capsys.readouterr().out,
    )
    report = json.loads((run / "conversion.json").read_text())
    path = "params/backbone/blocks_1/attn/relative_position_bias_table"
    assert report["tables"][path] == {
        "source": "blocks.1.attn.relative_position_bias_table",
        "shared": False,
        "from_hw": [6, 6],
        "hw": [8, 8],
    }
    check_given(stored(run, config), match(tensors, config), ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("tensors", "backbone", "notes"),
    [
        (deit(), VIT, "8 tensors as initialized: layer scale 1: the pre-training had none"),
        (beit(), BEIT_ADAPTER, "of these 4 relative positions, resized from 6 x 6 to 8 x 8"),
        (beit(), BEIT, "as initialized: the feature pyramid, which the pre-training did not have"),
    ],
    ids=["vit", "beit_adapter", "beit"],
)
def test_training_starts_from_a_pretrained_file(tensors, backbone, notes, tmp_path):
    config = config_of(backbone)
    torch_writer.write_torch_file(tmp_path / "file.pth", tensors)
    before = fresh(config)
    variables, origin = initial_weights.load_initial_weights(
        str(tmp_path / "file.pth"), before, "tiny"
    )
    assert notes in origin
    weights = match(tensors, config)
    before, after = parameter_paths.by_path(before), parameter_paths.by_path(variables)
    check_given(after, weights)
    assert {path for path, leaf in after.items() if (leaf == 7).all()} == set(weights.plan.initial)
    assert all(after[path].sharding == before[path].sharding for path in after)


@pytest.mark.parametrize("kind", ["file", "run"])
def test_training_starts_from_a_segmentor_of_another_window(kind, tmp_path):
    smaller, larger = {**BEIT, "window": (6, 6)}, {**BEIT, "window": (8, 12)}
    tensors = segmentor_of(smaller)
    run = converted(tensors, smaller, tmp_path)
    source = tmp_path / "file.pth" if kind == "file" else run
    config = config_of(larger)
    variables, origin = initial_weights.load_initial_weights(
        str(source), fresh(config), "tiny", window=(8, 12)
    )
    assert "of these 4 relative positions, resized from 6 x 6 to 8 x 12 patches" in origin
    assert "as initialized" not in origin
    weights = match(tensors, config, transfer=True, window=(8, 12))
    assert weights.arrays.keys() == parameter_paths.by_path(variables).keys()
    check_given(parameter_paths.by_path(variables), weights)


# And back.


def test_exported_beit_has_the_rows_of_every_pair_of_tokens(tmp_path):
    backbone = {**BEIT, "window": (4, 6)}
    tensors = segmentor_of(backbone)
    run = converted(tensors, backbone, tmp_path)
    export_torch.main(["--checkpoint", str(run), "--output", str(tmp_path / "back.pth")])
    back = torch_file.read_torch_file(tmp_path / "back.pth")["state_dict"]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    index = back["backbone.blocks.3.attn.relative_position_index"]
    np.testing.assert_array_equal(index, relative_position_index((4, 6)))
    match(back, config_of(backbone))


@pytest.mark.reference
@pytest.mark.parametrize("name", published.one_of_a_kind(PUBLISHED))
def test_exported_names_types_and_shapes_are_those_of_the_original(name):
    recorded = published.manifest_of(name)
    config = published.config_of(name)
    variables = variable_shapes(build_model(config.model))
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), variables)
    tensors = export_torch.to_state_dict(zeros, config.model.backbone.window)
    actual = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    assert actual == recorded["state_dict"]
