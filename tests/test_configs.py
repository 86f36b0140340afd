"""The recipes are those of the originals, setting by setting, and build at full size."""

import functools
import json
import math

import pytest
from published import MANIFESTS, config_of, manifest_of
from reference_files import REFERENCE

from converters import rules
from jaxseg import config_files, paths
from jaxseg.models import flops, segmentor

pytestmark = pytest.mark.reference
NAMES = [path.stem for path in MANIFESTS]
FLOPS = json.loads((REFERENCE / "internimage" / "flops.json").read_text())
HEADS = {"UPerHead": "uper", "SegformerHead": "segformer", "FCNHead": "fcn"}
OURS = {"drop_path_rate": "drop_path", "level2_post_norm_block_ids": "level2_post_norm_after"}
# Of the original's backbone: what it is, and settings that change nothing that is computed.
FIXED = {"type", "core_op", "norm_layer", "out_indices", "init_cfg", "with_cp", "level2_post_norm"}


@functools.cache
def built(name):
    """(model, shapes of its variables by path); many originals share a model."""
    described = json.dumps(config_of(name).model.to_dict(), sort_keys=True)
    return _built(described)


@functools.cache
def _built(described):
    model = segmentor.build(json.loads(described))
    return model, paths.shapes(segmentor.shapes(model))


count = functools.cache(
    lambda model, height, width: sum(flops.count(model, (height, width)).values())
)


@pytest.mark.parametrize("name", NAMES)
def test_model_is_that_of_the_original(name):
    original, model = manifest_of(name)["resolved"]["model"], config_of(name).model.to_dict()
    backbone = {OURS.get(k, k): v for k, v in original["backbone"].items() if k not in FIXED}
    defaults = {"dw_kernel_size": None, "center_feature_scale": False, "res_post_norm": False}
    defaults |= {"level2_post_norm_after": []}
    ours = json.loads(json.dumps(defaults | model["backbone"]))
    assert ours == defaults | backbone | {k: ours[k] for k in ("kind", "remat")}
    assert ours["remat"] == (name.split("_")[2] in ("l", "xl", "h", "g"))
    for part in ("decode_head", "auxiliary_head"):
        theirs, ours = original.get(part), model[part]
        assert (theirs is None) == (ours is None)
        if ours is not None:
            assert ours["kind"] == HEADS[theirs["type"]]
            assert ours["dropout"] == theirs["dropout_ratio"]
            assert (ours["channels"], ours["num_classes"]) == (theirs["channels"], 150)


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
        "layer_decay": layers["layer_decay_rate"],
        "clip_norm": clip,
        "warmup_steps": schedule["warmup_iters"],
        "warmup_ratio": schedule["warmup_ratio"],
        "power": schedule["power"],
        "accumulation": 1,
        "ema_decay": 0.0,
    }
    assert layers["num_layers"] == sum(config.model.backbone.depths)
    assert config.steps == original["runner"]["max_iters"]
    assert config.eval.every_steps == original["evaluation"]["interval"]
    auxiliary = original["model"].get("auxiliary_head")
    if auxiliary:
        assert config.loss.auxiliary_weight == auxiliary["loss_decode"]["loss_weight"]
    pretrained = original["model"]["backbone"]["init_cfg"]
    if pretrained:
        file = pretrained["checkpoint"].rpartition("/")[2]
        assert config.init == f"zoo:{file.removesuffix('.pth')}"
    else:
        # The UperNet ones name the SegFormer file, see configs/cityscapes.py.
        assert config.init.endswith("_mapillary")
        assert config.init.removeprefix("zoo:").split("_")[:3] == name.split("_")[:3]


@pytest.mark.parametrize("name", NAMES)
def test_data_is_prepared_as_in_the_original(name):
    original, data = manifest_of(name)["resolved"], config_of(name).data
    train = {step["type"]: step for step in original["train_pipeline"]}
    test = original["test_pipeline"][1]
    assert list(data.scale_wh) == train["Resize"]["img_scale"]
    assert list(data.ratio_range) == train["Resize"]["ratio_range"]
    assert list(data.crop_hw) == train["RandomCrop"]["crop_size"]
    assert data.cat_max_ratio == train["RandomCrop"]["cat_max_ratio"]
    assert data.flip_probability == train["RandomFlip"]["prob"]
    assert list(data.mean) == train["Normalize"]["mean"]
    assert list(data.std) == train["Normalize"]["std"]
    assert list(data.test_scale_wh) == test["img_scale"]
    multiples = [s["size_divisor"] for s in test["transforms"] if s["type"] == "ResizeToMultiple"]
    assert [data.test_multiple] == (multiples or [1])


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_the_original_has_its_place(name):
    """By shapes alone: the full size builds, and names and shapes match one to one."""
    manifest = manifest_of(name)
    _, variables = built(name)
    shapes = {
        rules.to_name(path): list(rules.channels_first_shape(shape, path))
        for path, shape in variables.items()
    }
    recorded = {k: shape for k, (_, *shape) in manifest["state_dict"].items()}
    assert shapes == {k: v for k, v in recorded.items() if not k.endswith(rules.COUNTER)}
    for tensor, shape in shapes.items():
        path = rules.to_path(tensor, len(shape))
        assert rules.to_name(path) == tensor
    parameters = [math.prod(s) for path, s in variables.items() if path.startswith("params/")]
    assert sum(parameters) == manifest["num_params"]


@pytest.mark.parametrize("name", [name for name in NAMES if name in FLOPS])
def test_flops_are_those_that_the_original_counts(name):
    model, _ = built(name)
    # `sync`: as published; synchronised batch norm is not counted. The last size is the largest.
    recorded = [count for count in FLOPS[name]["counts"] if count["bn"] == "sync"][-1]
    counted = count(model, *recorded["input"][1:])
    assert counted == recorded["hook_flops"] + recorded["dcnv3_extra"]


def test_every_variant_has_an_original():
    from configs import ade20k, cityscapes, mapillary

    covered = {config_of(name).variant for name in NAMES}
    files = {"cityscapes": cityscapes, "mapillary": mapillary, "ade20k": ade20k}
    for file, module in files.items():
        for variant in module.VARIANTS:
            assert config_files.load(f"configs/{file}.py:{variant}").variant in covered
    assert sum(len(module.VARIANTS) for module in files.values()) == len(NAMES)
