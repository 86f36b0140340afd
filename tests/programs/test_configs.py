"""The recipes are those of the originals, setting by setting, and build at full size."""

import functools
import json
import math
import re

import pytest

from converters import rules
from jaxseg import parameter_paths
from jaxseg.config import load_config
from jaxseg.data.source import evaluated_on, trained_on
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models import flops
from jaxseg.models.heads.mask2former_head import Mask2FormerHead
from jaxseg.models.segmentation_model import build_model, variable_shapes
from jaxseg.recipes.base import BASE
from jaxseg.zoo import catalogue
from support.published import (
    MANIFESTS,
    MULTI_SCALE,
    RECIPES,
    config_of,
    family_of,
    manifest_of,
    mask2former_of,
    one_of_a_kind,
    recipe_of,
)
from support.reference_files import REFERENCE

pytestmark = pytest.mark.reference
NAMES = [path.stem for path in MANIFESTS]
FLOPS = json.loads((REFERENCE / "internimage" / "flops.json").read_text())
HEADS = {"UPerHead": "upernet", "SegformerHead": "segformer", "FCNHead": "fcn"}
# By the original's class, and whether its labels have 0 for what is ignored.
DATASETS = {
    ("ADE20KDataset", True): "ade20k",
    ("CityscapesDataset", False): "cityscapes",
    ("COCOStuffDataset", True): "coco_stuff10k",
    ("COCOStuffDataset", False): "coco_stuff164k",
    ("ChaseDB1Dataset", False): "chase_db1",
    ("MapillaryDataset", False): "mapillary_to_cityscapes",
    ("NYUDepthV2Dataset", True): "nyu_depth_v2",
    ("PascalContextDataset59", True): "pascal_context59",
    ("PotsdamDataset", True): "potsdam",
}
WEIGHTS = {
    row.name: re.sub(r"(\.pth|\.tar|\.zip)+$", "", row.file_name)
    for row in (*catalogue.MODELS, *catalogue.BACKBONES)
}


@functools.cache
def built(name):
    """(model, shapes of its variables by path); many originals share a model."""
    described = json.dumps(config_of(name).model.to_dict(), sort_keys=True)
    return _built(described)


@functools.cache
def _built(described):
    model = build_model(json.loads(described))
    return model, parameter_paths.shapes(variable_shapes(model))


count = functools.cache(
    lambda model, height, width: sum(flops.count_flops(model, (height, width)).values())
)


def internimage(original):
    """The options here of the original's backbone."""
    # What it is, and settings that change nothing that is computed.
    fixed = {"type", "core_op", "norm_layer", "out_indices", "init_cfg", "with_cp"}
    fixed |= {"level2_post_norm"}
    ours = {"drop_path_rate": "drop_path", "level2_post_norm_block_ids": "level2_post_norm_after"}
    options = {"dw_kernel_size": None, "center_feature_scale": False, "res_post_norm": False}
    options |= {"kind": "internimage", "level2_post_norm_after": []}
    return options | {ours.get(k, k): v for k, v in original.items() if k not in fixed}


def vit_adapter(original):
    """The options here of the original's backbone; all of its settings are looked at."""
    given = dict(original)
    kind = given.pop("type")
    assert given.pop("patch_size") == 16
    given.pop("with_cp", None)  # less memory; see `remat`
    options = {
        "kind": {
            "ViTAdapter": "vit_adapter",
            "UniPerceiverAdapter": "uniperceiver_adapter",
            "BEiTAdapter": "beit_adapter",
            "BEiTBaseline": "beit",
        }[kind],
        "drop_path": given.pop("drop_path_rate"),
    }
    if kind.startswith("BEiT"):
        assert given.pop("qkv_bias")
        assert given.pop("use_rel_pos_bias")
        assert not given.pop("use_abs_pos_emb")
        side = given.pop("img_size") // 16
        options |= {"window": [side, side], "layer_scale": given.pop("init_values")}
    else:
        given.pop("img_size", None)
        assert not any(given.pop("window_attn") + given.pop("window_size"))
        options |= {"pretrain_grid": given.pop("pretrain_size", 224) // 16}
    if kind.endswith("Adapter"):
        ratio = given.pop("cffn_ratio")
        options |= {
            "num_points": given.pop("n_points"),
            "ffn_ratio": ratio if given.pop("with_cffn", True) else None,
            "extra_extractors": 2 if given.pop("use_extra_extractor", True) else 0,
            "add_vit_feature": given.pop("add_vit_feature", True),
            "initial_gamma": options.get("layer_scale", 0.0),
        }
    return options | given


def training_of(original):
    """The dataset that is trained on; CHASE_DB1's is repeated, as all are here."""
    return original["train"].get("dataset", original["train"])


OPTIONS = {"internimage": internimage, "vit_adapter": vit_adapter}


@pytest.mark.parametrize("name", NAMES)
def test_backbone_is_that_of_the_original(name):
    original = manifest_of(name)["resolved"]["model"]["backbone"]
    ours = json.loads(json.dumps(config_of(name).model.backbone.to_dict()))
    large = {"l", "xl", "h", "g", "large"} & set(name.split("_"))
    assert ours.pop("remat") == bool(large)
    assert ours.pop("remat_keeps") == "kernels"
    options = OPTIONS[family_of(name)](original)
    defaults = options if family_of(name) == "internimage" else {}
    assert defaults | ours == options


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_those_of_the_original(name):
    original, model = manifest_of(name)["resolved"]["model"], config_of(name).model.to_dict()
    for part in ("decode_head", "auxiliary_head"):
        theirs, ours = original.get(part), model[part]
        assert (theirs is None) == (ours is None)
        if ours is not None and ours["kind"] == "mask2former":
            options = mask2former_of(theirs)
            assert {field: options[field] for field in ours.keys() & options.keys()} == {
                field: value for field, value in ours.items() if field not in ("kind", "remat")
            }
            defaults = Mask2FormerHead.__dataclass_fields__
            for field in options.keys() - ours.keys():
                assert defaults[field].default == options[field], field
        elif ours is not None:
            assert ours["kind"] == HEADS[theirs["type"]]
            assert ours["dropout"] == theirs["dropout_ratio"]
            assert ours["channels"] == theirs["channels"]
            assert ours["num_classes"] == theirs["num_classes"]
            assert list(ours.get("pool_scales", ())) == theirs.get("pool_scales", [])
            assert ours.get("in_index", [0, 1, 2, 3]) == theirs["in_index"]


@pytest.mark.parametrize("name", NAMES)
def test_training_is_that_of_the_original(name):
    original, config = manifest_of(name)["resolved"], config_of(name)
    optimizer, layers = original["optimizer"], original["optimizer"]["paramwise_cfg"]
    clip = (original["optimizer_config"].get("grad_clip") or {"max_norm": 0.0})["max_norm"]
    schedule = original["lr_config"]
    assert config.optim.to_dict() == {
        "lr": optimizer["lr"],
        "betas": tuple(optimizer["betas"]),
        "weight_decay": optimizer["weight_decay"],
        "layer_decay": layers.get("layer_decay_rate", 1.0),
        "custom_keys": tuple(
            (key, factors.get("lr_mult", 1.0), factors.get("decay_mult", 1.0))
            for key, factors in layers.get("custom_keys", {}).items()
        ),
        "clip_norm": clip,
        "warmup_steps": schedule["warmup_iters"],
        "warmup_ratio": schedule["warmup_ratio"],
        "schedule": "polynomial",
        "power": schedule["power"],
        "accumulation": 1,
        "freeze": "",
        "frozen_dtype": "float32",
        "lora": BASE["optim"]["lora"],
        "ema_decay": 0.0,
    }
    assert schedule["min_lr"] == 0
    if "num_layers" in layers:
        backbone = config.model.backbone
        depth = sum(backbone.depths) if "depths" in backbone else backbone.depth
        assert layers["num_layers"] == depth
    assert config.steps == original["runner"]["max_iters"]
    assert config.eval.every_steps == original["evaluation"]["interval"]
    # Of images per GPU, on eight; those that have one, and potsdam's are not, on sixteen.
    assert config.batch_size in (8 * original["data"]["samples_per_gpu"], 16)
    auxiliary = original["model"].get("auxiliary_head")
    if auxiliary:
        assert config.loss.auxiliary_weight == auxiliary["loss_decode"]["loss_weight"]
    if config.model.decode_head.kind == "mask2former":
        points, ours = original["model"]["train_cfg"], config.loss.mask2former
        assert ours.num_points == points["num_points"]
        assert ours.oversample_ratio == points["oversample_ratio"]
        assert ours.importance_sample_ratio == points["importance_sample_ratio"]


@pytest.mark.parametrize("name", NAMES)
def test_start_is_that_of_the_original(name):
    original, init = manifest_of(name)["resolved"], config_of(name).init
    model, segmentor = original["model"], original["load_from"]
    if family_of(name) == "vit_adapter":
        backbone = model["pretrained"]
    else:
        backbone = (model["backbone"]["init_cfg"] or {}).get("checkpoint")
    file = (segmentor or backbone).rpartition("/")[2].removesuffix(".tar").removesuffix(".pth")
    if name.startswith("upernet") and segmentor:
        # These name the SegFormer file, see configs/cityscapes.py.
        file = file.replace("segformer", "upernet")
    assert WEIGHTS[init.removeprefix("zoo:")] == file


@pytest.mark.parametrize("name", NAMES)
def test_images_are_prepared_as_in_the_original(name):
    original, data = manifest_of(name)["resolved"]["data"], config_of(name).data
    train = {step["type"]: step for step in training_of(original)["pipeline"]}
    _, test = original["val"]["pipeline"]
    assert list(data.scale_wh) == train["Resize"]["img_scale"]
    assert list(data.ratio_range) == train["Resize"]["ratio_range"]
    assert list(data.crop_hw) == train["RandomCrop"]["crop_size"] == train["Pad"]["size"]
    assert data.cat_max_ratio == train["RandomCrop"]["cat_max_ratio"]
    assert data.flip_probability == train["RandomFlip"]["prob"]
    assert list(data.test_scale_wh) == test["img_scale"]
    steps = {step["type"]: step for step in test["transforms"]}
    multiple = steps.get("ResizeToMultiple", {"size_divisor": 1})["size_divisor"]
    # One original leaves it out where it changes nothing, see configs/cityscapes.py.
    without = "mask2former_beit_adapter_large_896_80k_cityscapes_ss"
    assert data.test_multiple == (32 if name == without else multiple)
    for normalize in (train["Normalize"], steps["Normalize"]):
        assert list(data.mean) == normalize["mean"]
        assert list(data.std) == normalize["std"]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_those_of_the_original(name):
    original, data = manifest_of(name)["resolved"]["data"], config_of(name).data
    _, labels, *_ = training_of(original)["pipeline"]
    for theirs, ours in (
        (training_of(original), trained_on(data)),
        (original["val"], evaluated_on(data)),
    ):
        kind = theirs["type"], labels.get("reduce_zero_label", False)
        assert ours.dataset.name == DATASETS[kind]
        images = [ours.dataset.image_folder(split) for split in ours.split.split("+")]
        listed = theirs["img_dir"] if isinstance(theirs["img_dir"], list) else [theirs["img_dir"]]
        assert images == listed
        assert ours.dataset.split_list_file(ours.split) == theirs.get("split", "")


@pytest.mark.parametrize("name", NAMES)
def test_images_are_predicted_as_in_the_original(name):
    test, ours = manifest_of(name)["resolved"]["model"]["test_cfg"], config_of(name).eval
    assert ours.mode == test["mode"]
    if ours.mode == "slide":
        assert list(ours.crop_hw) == test["crop_size"]
        assert list(ours.stride_hw) == test["stride"]


@pytest.mark.parametrize("name", [*NAMES, *MULTI_SCALE])
def test_views_are_those_of_the_original(name):
    protocol = "ms" if name in MULTI_SCALE else "ss"
    original, config = manifest_of(name)["resolved"], config_of(name)
    _, test = original["data"]["test"]["pipeline"]
    steps = {step["type"]: step for step in test["transforms"]}
    names, rule = list(steps), config.eval[protocol]
    assert list(config.data.test_scale_wh) == test["img_scale"]
    assert list(rule.ratios) == (test.get("img_ratios") or [1.0])
    assert rule.flip == test["flip"]
    resize = steps.get("SETR_Resize", {"crop_size": config.eval.crop_hw})
    assert (rule.resize == "short_side") == ("SETR_Resize" in steps)
    assert list(config.eval.crop_hw) == list(resize["crop_size"])
    # Stretched only after Resize, and then in all but those of Cityscapes.
    assert not {"SETR_Resize", "ResizeToMultiple"} <= set(steps)
    pad = "none"
    if "PadShortSide" in steps:
        before = names.index("PadShortSide") < names.index("Normalize")
        pad = "before_normalize" if before else "after_normalize"
        assert steps["PadShortSide"]["size"] == config.eval.crop_hw[0]
        # Of the published segmentors only this one cuts padding off in windows.
        assert original["model"]["type"] == "EncoderDecoderMask2FormerAug"
        assert rule.cut_padding
        assert config.eval.mode == "slide"
    assert rule.pad == pad
    known = {"Resize", "SETR_Resize", "ResizeToMultiple", "RandomFlip", "PadShortSide"}
    assert set(steps) <= known | {"Normalize", "ImageToTensor", "Collect"}


@pytest.mark.parametrize("name", MULTI_SCALE)
def test_several_scales_change_nothing_but_the_views(name):
    several, single = (manifest_of(n)["resolved"] for n in (name, re.sub("_ms$", "_ss", name)))
    assert several["model"]["test_cfg"] == single["model"]["test_cfg"]
    config = config_of(name)
    _, test = several["data"]["test"]["pipeline"]
    normalize = next(step for step in test["transforms"] if step["type"] == "Normalize")
    assert [list(config.data.mean), list(config.data.std)] == [normalize["mean"], normalize["std"]]


@pytest.mark.parametrize("name", one_of_a_kind(NAMES))
def test_every_tensor_of_the_original_has_its_place(name):
    """By shapes alone: the full size builds, and names and shapes match one to one."""
    manifest = manifest_of(name)
    _, variables = built(name)
    shapes = {
        rules.to_name(path): list(rules.channels_first_shape(shape, path))
        for path, shape in variables.items()
    }
    recorded = manifest["state_dict"].items()
    # Integers are counters of batch norm and indices of positions.
    assert shapes == {k: shape for k, (dtype, *shape) in recorded if dtype == "float32"}
    for tensor, shape in shapes.items():
        path = rules.to_path(tensor, len(shape))
        assert rules.to_name(path) == tensor
    parameters = [math.prod(s) for path, s in variables.items() if path.startswith("params/")]
    assert sum(parameters) == manifest["num_params"]


@pytest.mark.parametrize("name", one_of_a_kind([name for name in NAMES if name in FLOPS]))
def test_flops_are_those_that_the_original_counts(name):
    model, _ = built(name)
    # `sync`: as published; synchronized batch norm is not counted.
    counts = [count for count in FLOPS[name]["counts"] if count["bn"] == "sync"]
    recorded = max(counts, key=lambda count: math.prod(count["input"]))
    counted = count(model, *recorded["input"][1:])
    assert counted == recorded["hook_flops"] + recorded["dcnv3_extra"]


def test_every_variant_has_an_original():
    recipes = [
        f"configs/{file}.py:{variant}"
        for file, module in RECIPES.items()
        for variant in module.VARIANTS
        if not re.search("_dinov[23]_", variant)  # see test_dinov{2,3}_recipes.py
    ]
    assert sorted(recipes) == sorted(map(recipe_of, NAMES))
    for recipe in recipes:
        config = load_config(recipe)
        assert config.variant == recipe.partition(":")[2]
        check_image_sizes(config)
