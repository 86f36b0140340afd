"""The original configs, by their recorded manifests, and the variants that are theirs here."""

import importlib
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from jaxseg.config import load_config
from support.reference_files import REFERENCE
from support.runs import ROOT

_MANIFESTS = sorted(
    path
    for family in ("internimage", "vit_adapter")
    for path in (REFERENCE / family / "manifests").glob("*.json")
)
# Those that differ from another one by their evaluation at several scales, and all others.
MULTI_SCALE = [path.stem for path in _MANIFESTS if path.stem.endswith("_ms")]
MANIFESTS = [path for path in _MANIFESTS if path.stem not in MULTI_SCALE]
# The files of recipes by name: all that have variants, but for those without an original.
RECIPES = {
    path.stem: module
    for path in sorted((ROOT / "configs").glob("*.py"))
    if hasattr(module := importlib.import_module(f"configs.{path.stem}"), "VARIANTS")
    and path.stem not in ("custom", "demo")
}
# The end of an original's name, which is its dataset, and the config file here.
FILES = {
    "ade20k": "ade20k",
    "cityscapes": "cityscapes",
    "mapillary": "mapillary",
    "to_10k": "coco_stuff10k",
    "cocostuff10k": "coco_stuff10k",
    "cocostuff164k": "coco_stuff164k",
    "pascal_context_59": "pascal_context",
    "potsdam": "potsdam",
    "chase_db1": "chase_db1",
    "nyu": "nyu_depth_v2",
}


def family_of(name: str) -> str:
    """The family of models, and the folder of recordings, of an original config."""
    return "internimage" if "_internimage_" in name else "vit_adapter"


def manifest_of(name: str) -> dict:
    """What was recorded of an original config: settings, names and shapes of its tensors."""
    return json.loads((REFERENCE / family_of(name) / "manifests" / f"{name}.json").read_text())


def recipe_of(name: str) -> str:
    """FILE:VARIANT of the recipe here of an original config.

    The original's name is HEAD_BACKBONE_SIZE_CROP_STEPS_DATASET, with _ss or _ms for evaluation at
    a single scale or several; a variant's is HEAD_BACKBONE_SIZE and the dataset of the segmentor it
    starts from, which only the former says.
    """
    name = re.sub("_ms$", "_ss", name)
    backbone = re.match(r"[a-z0-9]+_(internimage_[a-z]+|[a-z0-9_]+_[tsbl](?=[a-z]+_\d))", name)
    dataset = next(end for end in FILES if name.removesuffix("_ss").endswith(end))
    start = re.search(r"mapillary|cocostuff", manifest_of(name)["resolved"]["load_from"] or "")
    return f"configs/{FILES[dataset]}.py:{backbone.group()}" + (
        f"_{start.group()}" if start else ""
    )


def one_of_a_kind(names: list[str]) -> list:
    """Test parameters: of the originals with the same head and backbone all but one are `full`."""
    kinds, parameters = set(), []
    for name in names:
        variant = recipe_of(name).partition(":")[2]
        kind = re.sub("_(mapillary|cocostuff)$", "", variant)
        parameters.append(pytest.param(name, marks=[pytest.mark.full] * (kind in kinds)))
        kinds.add(kind)
    return parameters


def config_of(name: str, *overrides: str) -> ConfigDict:
    """The config here of an original one, in float32."""
    return load_config(recipe_of(name), ["--config.model.dtype=float32", *overrides])


def mask2former_of(original: dict) -> dict:
    """The options here of an original Mask2FormerHead."""
    pixels, queries = original["pixel_decoder"], original["transformer_decoder"]
    encoder, decoder = pixels["encoder"]["transformerlayers"], queries["transformerlayers"]
    attention = encoder["attn_cfgs"]
    assert original["out_channels"] == original["feat_channels"]
    assert decoder["attn_cfgs"]["num_heads"] == attention["num_heads"]
    both = original["num_things_classes"] + original["num_stuff_classes"]
    return {
        # InternImage's say it; what they inherit as things and stuff is of no account.
        "num_classes": original.get("num_classes", both),
        "channels": original["feat_channels"],
        "num_queries": original["num_queries"],
        "num_heads": attention["num_heads"],
        "num_points": attention["num_points"],
        "encoder_layers": pixels["encoder"]["num_layers"],
        "encoder_ffn_dim": encoder["ffn_cfgs"]["feedforward_channels"],
        "decoder_layers": queries["num_layers"],
        "decoder_ffn_dim": decoder["feedforward_channels"],
        "norm_groups": pixels["norm_cfg"]["num_groups"],
    }


def name_of(path: pathlib.Path) -> str:
    """The original config of a recording; a second input size of the same model follows "__"."""
    return path.stem.split("__")[0]
