"""The recipes of DINOv3 have the settings of the recorded segmentors, and build at full size."""

import functools
import json
import math

import numpy as np
import pytest

from converters import conversion_plan, dinov3, rules
from jaxseg import parameter_paths
from jaxseg.config import load_config
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models.segmentation_model import build_model, variable_shapes
from jaxseg.parameter_paths import begins_with
from jaxseg.recipes.dinov3 import BACKBONES, SEGMENTORS, TRANSFORMER
from jaxseg.zoo import catalogue
from support.reference_files import REFERENCE

pytestmark = pytest.mark.reference

MANIFESTS = {path.stem: path for path in (REFERENCE / "dinov3" / "manifests").glob("*.json")}
WHOLE = sorted(name for name in MANIFESTS if "_ade20k_" in name)
ALONE = sorted(MANIFESTS.keys() - set(WHOLE))
# Published for a training that jaxseg does not have.
UNUSED = "local_cls_norm."


@functools.cache
def manifest_of(name):
    return json.loads(MANIFESTS[name].read_text())


def recipe_of(name):
    """The recipe of a recorded segmentor, dinov3_BACKBONE_ade20k_HEAD."""
    _, backbone, _, head = name.split("_")
    kind = {"m2f": "mask2former", "linear": "linear"}[head]
    return f"configs/ade20k.py:{kind}_dinov3_{backbone}"


@functools.cache
def variables_of(recipe):
    model = build_model(load_config(recipe, {"model.dtype": "float32"}).model)
    return parameter_paths.shapes(variable_shapes(model))


def test_recordings_and_recipes_are_of_the_same_models():
    assert {name.split("_")[1] for name in WHOLE} == set(SEGMENTORS)
    assert {name.split("_")[1] for name in ALONE} == set(BACKBONES)
    for recipe in map(recipe_of, WHOLE):
        check_image_sizes(load_config(recipe))


QUICK = ("dinov3_vits16_ade20k_linear", "dinov3_vit7b16_ade20k_m2f")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name not in QUICK)) for name in WHOLE]
)
def test_every_tensor_of_the_original_has_its_place(name):
    """By shapes alone: names and shapes match one to one, also when they are exported again."""
    shapes = variables_of(recipe_of(name))
    tensors = {
        rules.to_name(path): np.broadcast_to(np.float32(0), rules.channels_first_shape(shape, path))
        for path, shape in shapes.items()
    }
    manifest = manifest_of(name)
    recorded = {
        key: tuple(shape)
        for key, (dtype, *shape) in manifest["state_dict"].items()
        if dtype == "float32" and UNUSED not in key
    }
    exported = dinov3.original_names(tensors)
    assert {key: tensor.shape for key, tensor in exported.items()} == recorded
    unused = (".mask_token", dinov3.MASK)
    back = {dinov3.rename(key): key for key in exported if not key.endswith(unused)}
    assert back.keys() == tensors.keys()

    parameters = {path: s for path, s in shapes.items() if path.startswith("params/")}
    frozen = [s for path, s in parameters.items() if begins_with(path[7:], [TRANSFORMER])]
    # Tokens in place of masked patches, and norms of the pre-training.
    left_out = sum(
        math.prod(shape)
        for key, (_, *shape) in manifest["state_dict"].items()
        if key.endswith("mask_token") or UNUSED in key
    )
    total = sum(math.prod(shape) for shape in parameters.values())
    assert total + left_out == manifest["num_params"]
    trained = total - sum(map(math.prod, frozen))
    assert trained == manifest["num_params_trainable"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.full] * ("vits16_" not in name)) for name in ALONE],
)
def test_files_of_transformers_are_the_start_of_training(name):
    backbone = name.split("_")[1]
    kinds = ("linear", "mask2former") if backbone in SEGMENTORS else ()
    tensors = {
        key: tuple(shape)
        for key, (dtype, *shape) in manifest_of(name)["state_dict"].items()
        if dtype == "float32"
    }
    for kind in kinds:
        wanted = variables_of(f"configs/ade20k.py:{kind}_dinov3_{backbone}")
        plan = conversion_plan.make_plan(tensors, wanted, source=name, model=kind)
        frozen = [path for path in wanted if begins_with(path.partition("/")[2], [TRANSFORMER])]
        assert set(plan.used.values()) == set(frozen)
        assert not plan.derived
    assert catalogue.fetch_backbone("dinov3_vits16_ade20k_linear") is None


@pytest.mark.parametrize("name", WHOLE)
def test_settings_are_those_of_the_original(name):
    original = manifest_of(name)["resolved"]
    config = load_config(recipe_of(name))
    backbone, ours = original["backbone"], config.model.backbone
    assert not backbone["drop_path_rate"]
    assert (backbone["norm_layer"], backbone["pos_embed_rope_base"]) == ("layernormbf16", 100)
    same = {"embed_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads"}
    same |= {"ffn": "ffn_layer", "ffn_ratio": "ffn_ratio", "use_bias": "qkv_bias"}
    same |= {"storage_tokens": "n_storage_tokens"}
    assert {key: ours[key] for key in same} == {key: backbone[same[key]] for key in same}
    test = original["test"]
    assert config.eval.mode == test["mode"]
    assert config.eval.crop_hw == (test["crop"],) * 2
    assert config.eval.stride_hw == (test["stride"],) * 2
    assert min(config.data.test_scale_wh) == test["short_side"]
    if "adapter" not in original:
        return
    adapter, head = original["adapter"], original["decode_head"]
    assert list(ours.interaction_indexes) == adapter["interaction_indexes"]
    same = {"conv_inplane": "conv_inplane", "num_points": "n_points", "drop_path": "drop_path_rate"}
    same |= {"deform_num_heads": "deform_num_heads", "deform_ratio": "deform_ratio"}
    same |= {"conv_ffn_ratio": "cffn_ratio", "add_vit_feature": "add_vit_feature"}
    assert {key: ours[key] for key in same} == {key: adapter[same[key]] for key in same}
    assert ours.extra_extractors == 2 * adapter["use_extra_extractor"]
    ours = config.model.decode_head
    assert (ours.channels, ours.num_classes) == (head["hidden_dim"], head["num_classes"])
    assert ours.num_queries == head["num_queries"]
    assert ours.num_heads == head["encoder"]["heads"] == head["decoder"]["heads"]
    assert ours.encoder_ffn_dim == head["encoder"]["ffn"]
    assert ours.decoder_ffn_dim == head["decoder"]["ffn"]
    assert list(config.eval.ms.ratios) == test["tta_ratios"]
    assert config.eval.ms.flip == test["flip"]
