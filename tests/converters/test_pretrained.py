"""Pre-trained ViTs become backbones: what they have is used, what they lack is fresh for a reason.

The originals' loaders copy by name and skip in silence; what ends up in the model is the same here.
"""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from converters import state_dict, torch_weights
from converters.fill import fill
from jaxseg.errors import CheckpointError
from jaxseg.recipes import base, vit_adapter
from support.reference_files import REFERENCE, Recording, recordings
from support.tiny_vits import (
    ADDED,
    BEIT,
    BEIT_ADAPTER,
    NO_ADAPTER,
    NO_HEADS,
    UNIPERCEIVER,
    VIT,
    beit,
    config_of,
    deit,
    filled,
    match,
    pretrained_of,
    segmentor_of,
    shared_table,
    wanted_by,
)

MANIFESTS = sorted((REFERENCE / "vit_adapter" / "pretrained" / "manifests").glob("*.json"))
TABLES = recordings("vit_adapter/pretrained")

# The published files, by names and shapes.


def published_models(recorded):
    """The models that a published file is for, at full size."""
    shapes = recorded["state_dict"]
    width = shapes["patch_embed.proj.bias"][1]
    size = next(size for size in vit_adapter.SIZES.values() if size["embed_dim"] == width)
    if "pos_embed" in shapes:
        grid = 24 if "res_384" in recorded["file"] else 14
        backbones = [vit_adapter.VIT | size | {"pretrain_grid": grid}]
    else:
        windows = [{"window": (crop // 16,) * 2} for crop in (512, 640, 896)]
        backbones = [vit_adapter.BEIT | size | window for window in windows]
    return [base.upernet(backbone, 150) for backbone in backbones]


@pytest.mark.reference
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split("-")[0])
def test_published_file_gives_what_it_has(path):
    recorded = json.loads(path.read_text())
    shapes = recorded["state_dict"] | recorded["may_be_present"]
    # Views of one zero: the values do not matter, and the sizes are full.
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, (_, *shape) in shapes.items()}
    content = {recorded["nesting"]: tensors} if recorded["nesting"] else tensors
    for model in published_models(recorded):
        window = model["backbone"].get("window")
        wanted = wanted_by(model)
        found = state_dict.find_state_dict(content).tensors
        weights = torch_weights.match(found, wanted, source="file", model="model", window=window)
        plan = weights.plan

        adapter = {path for path in wanted if ADDED.search(path)}
        heads = {path for path in wanted if "/backbone/" not in path}
        assert plan.fresh.keys() == adapter | heads
        assert {plan.fresh[path] for path in adapter} == {NO_ADAPTER}
        assert {plan.fresh[path] for path in heads} == NO_HEADS
        depth = model["backbone"]["depth"]
        if window:
            tables = {f"blocks.{i}.attn.relative_position_bias_table" for i in range(depth)}
            assert {table.source for table in plan.tables.values()} == tables
            why = f"relative positions, resized from 14 x 14 to {window[0]} x {window[1]} patches"
            reasons = {"classifier of the pre-training", "follows from the grid"}
        else:
            tables = set()
            why = "layer scale 1: the pre-training had none"
            reasons = {"classifier of the pre-training", "last norm of the pre-training"}
            reasons |= {"class token, which the model does not have"}
        assert set(plan.derived.values()) == {why}
        assert len(plan.derived) == (1 if window else 2) * depth
        assert set(plan.ignored.values()) == reasons
        assert plan.used.keys() | plan.ignored.keys() | tables == tensors.keys()
        assert weights.arrays.keys() | plan.initial.keys() == wanted.keys()
        assert {path: array.shape for path, array in weights.arrays.items()}.items() <= (
            wanted.items()
        )


# Tables of relative positions.


@pytest.mark.reference
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_block_gets_the_recorded_table(path):
    recorded = Recording(path)
    meta, table = recorded.json("meta"), recorded["inputs/table"]
    heads, side = table.shape[1], meta["dst_patches"]
    size = {"embed_dim": 4 * heads, "num_heads": heads, "deform_num_heads": heads}
    config = config_of(BEIT_ADAPTER, **size, window=(side, side))
    shapes = {  # of everything but the tables
        name: tensor.shape
        for name, tensor in pretrained_of(config.model.backbone.to_dict()).items()
        if "relative_position" not in name
    }
    names = ["rel_pos_bias"] if meta["shared"] else [f"blocks.{i}.attn" for i in range(4)]
    tables = {f"{name}.relative_position_bias_table": table for name in names}
    weights = match(filled(shapes) | tables, config)
    blocks = [
        weights.arrays[f"params/backbone/blocks_{i}/attn/relative_position_bias_table"]
        for i in range(4)
    ]
    expected = recorded.group("outputs/table_block")
    assert expected
    for i, values in expected.items():
        np.testing.assert_allclose(blocks[int(i)], values, rtol=0, atol=1e-6)
    assert set(tables) <= weights.plan.used.keys() | {
        table.source for table in weights.plan.tables.values()
    }


def test_table_of_the_same_window_is_used_as_it_is():
    tensors = beit(8)
    weights = match(tensors, config_of(BEIT_ADAPTER))
    assert not weights.plan.derived
    path = "params/backbone/blocks_2/attn/relative_position_bias_table"
    assert np.shares_memory(
        weights.arrays[path], tensors["blocks.2.attn.relative_position_bias_table"]
    )


def test_what_is_only_renamed_is_not_copied():
    tensors = beit()
    weights = match(tensors, config_of(BEIT_ADAPTER))
    assert len(weights.plan.used) > 40
    for name, path in weights.plan.used.items():
        assert np.shares_memory(weights.arrays[path], tensors[name]), name


def test_blocks_share_the_table_that_they_shared():
    table = fill("table", (11 * 11 + 3, 3))
    config = config_of(BEIT_ADAPTER, window=(6, 6))
    plan = match(shared_table(table), config).plan
    assert set(plan.derived.values()) == {"the one table of relative positions, for every block"}
    assert (
        plan.ignored["mask_token"]
        == plan.ignored["lm_head.bias"]
        == ("prediction of masked patches")
    )
    resized = match(shared_table(table), config_of(BEIT_ADAPTER)).plan
    assert set(resized.derived.values()) == {
        "the one table of relative positions, resized from 6 x 6 to 8 x 8 patches"
    }


def test_windows_may_be_oblong():
    config = config_of(BEIT_ADAPTER, window=(8, 16))
    path = "params/backbone/blocks_0/attn/relative_position_bias_table"
    weights = match(beit(), config, window=(8, 16))
    assert weights.arrays[path].shape == (15 * 31 + 3, 3)
    # Which window of 468 rows it is cannot be told without.
    with pytest.raises(CheckpointError, match=r"bias_table: \[124, 3\] in the file, \[468, 3\]"):
        match(beit(), config)


def test_half_precision_tables_are_resized_in_single():
    tensors = {
        name: tensor.astype(ml_dtypes.bfloat16) if "bias_table" in name else tensor
        for name, tensor in beit().items()
    }
    arrays = match(tensors, config_of(BEIT_ADAPTER)).arrays
    table = arrays["params/backbone/blocks_0/attn/relative_position_bias_table"]
    assert table.dtype == np.float32


def test_segmentor_is_of_its_window_unless_trained_further():
    tensors = segmentor_of({**BEIT_ADAPTER, "window": (6, 6)})
    config = config_of(BEIT_ADAPTER)
    with pytest.raises(CheckpointError) as error:
        match(tensors, config)
    message = str(error.value)
    assert "4 of another shape" in message
    assert (
        "The file's relative positions are of 6 x 6 patches:"
        " --config.model.backbone.window='(6, 6)'; or train from it, which resizes them:"
        " --config.init=file.pth" in message
    )
    plan = match(tensors, config, transfer=True).plan
    assert len(plan.tables) == 4
    assert not plan.fresh


# What else may differ.


def test_plain_vit_gets_layer_scales_of_one():
    plan = match(deit(), config_of(VIT)).plan
    scales = {f"params/backbone/blocks_{i}/gamma{k}" for i in range(4) for k in (1, 2)}
    assert plan.derived == dict.fromkeys(scales, "layer scale 1: the pre-training had none")
    assert set(plan.ignored) == {n for n in deit() if re.match("cls_token|norm|head", n)}


def test_uniperceiver_is_in_the_names_of_the_backbone():
    # What its converted file holds besides has not been seen; it would be refused by name.
    tensors = pretrained_of(UNIPERCEIVER)
    plan = match(tensors, config_of(UNIPERCEIVER)).plan
    assert plan.used.keys() == tensors.keys()
    assert set(plan.fresh.values()) == {NO_ADAPTER, *NO_HEADS}
    # Its layer scales start at 0: without them nothing of the pre-training would be left.
    scaleless = {name: tensor for name, tensor in tensors.items() if "gamma" not in name}
    with pytest.raises(CheckpointError, match=r"8 in the model only:\n.*layers\.0\.gamma_1"):
        match(scaleless, config_of(UNIPERCEIVER))


def test_beit_without_an_adapter_gets_a_fresh_pyramid():
    plan = match(beit(), config_of(BEIT)).plan
    assert set(plan.fresh.values()) == {
        "the feature pyramid, which the pre-training did not have",
        *NO_HEADS,
    }
    assert len(plan.tables) == 4


def test_class_token_of_beit_is_used():
    assert "cls_token" in match(beit(), config_of(BEIT_ADAPTER)).plan.used


def test_adapter_that_the_file_has_is_used_and_has_to_be_whole():
    tensors = {
        name: tensor for name, tensor in segmentor_of(VIT).items() if name.startswith("backbone.")
    }
    plan = match(tensors, config_of(VIT)).plan
    assert plan.used.keys() == tensors.keys()
    assert set(plan.fresh.values()) == NO_HEADS
    del tensors["backbone.level_embed"]
    with pytest.raises(CheckpointError, match=r"1 in the model only:\n.*level_embed"):
        match(tensors, config_of(VIT))


def test_positions_of_another_grid_are_refused_and_the_setting_is_named():
    with pytest.raises(CheckpointError) as error:
        match(deit(), config_of(VIT, pretrain_grid=6))
    message = str(error.value)
    assert "file.pth does not fit tiny" in message
    assert "pos_embed: [1, 17, 12] in the file, [1, 37, 12] in the model" in message
    assert "The file's positions are of 4 x 4 patches" in message
    assert message.endswith("--config.model.backbone.pretrain_grid=4")
    with pytest.raises(CheckpointError, match="positions are of 4 x 4 patches"):
        match(pretrained_of(UNIPERCEIVER), config_of(UNIPERCEIVER, pretrain_grid=6))


def test_unknown_tensors_are_refused_with_the_nearest_names():
    tensors = deit()
    tensors["blocks.0.mlp.fc1.weights"] = tensors.pop("blocks.0.mlp.fc1.weight")
    with pytest.raises(CheckpointError, match=r"weights \(nearest: backbone.blocks.0.mlp.fc1.w"):
        match(tensors, config_of(VIT))
    # A distilled DeiT has one more position, and so no place in these models.
    distilled = deit() | {"pos_embed": np.zeros((1, 18, 12)), "dist_token": np.zeros((1, 1, 12))}
    with pytest.raises(CheckpointError, match=r"dist_token") as error:
        match(distilled, config_of(VIT))
    assert "pretrain_grid" not in str(error.value)


@pytest.mark.parametrize(("tensors", "backbone"), [(deit(), BEIT_ADAPTER), (beit(), VIT)])
def test_file_of_the_other_family_is_refused(tensors, backbone):
    with pytest.raises(CheckpointError, match="in the file only"):
        match(tensors, config_of(backbone))
