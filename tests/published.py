"""The original configs, by their recorded manifests, and the variants that are theirs here."""

import json
import pathlib
import re

from ml_collections import ConfigDict
from reference_files import REFERENCE

from jaxseg import config_files

MANIFESTS = sorted(
    path
    for family in ("internimage", "vit_adapter")
    for path in (REFERENCE / family / "manifests").glob("*.json")
    # There are no recipes of Mask2Former yet, nor evaluation at several scales.
    if not path.stem.startswith("mask2former") and not path.stem.endswith("_ms")
)
FILES = {"cocostuff10k": "coco_stuff10k", "cocostuff164k": "coco_stuff164k"}


def family_of(name: str) -> str:
    """The family of models, and the folder of recordings, of an original config."""
    return "internimage" if "_internimage_" in name else "vit_adapter"


def manifest_of(name: str) -> dict:
    """What was recorded of an original config: settings, names and shapes of its tensors."""
    return json.loads((REFERENCE / family_of(name) / "manifests" / f"{name}.json").read_text())


def recipe_of(name: str) -> str:
    """FILE:VARIANT of the recipe here of an original config.

    The original's name is HEAD_internimage_SIZE_…_DATASET, where `mapillary2X` is X started from
    there, or HEAD_BACKBONE_SIZE_CROP_STEPS_DATASET, with _ss for evaluation at a single scale.
    """
    if family_of(name) == "internimage":
        head, family, size, *_, dataset = name.split("_")
        source, dataset = re.fullmatch(r"(?:(mapillary)2)?(\w+)", dataset).groups()
        variant = f"{head}_{family}_{size}" + (f"_{source}" if source else "")
    else:
        pattern = r"(\w+_[tsbl])[a-z]+_\d+_\d+k_(\w+?)(?:_59)?(?:_ss)?"
        variant, dataset = re.fullmatch(pattern, name).groups()
    return f"configs/{FILES.get(dataset, dataset)}.py:{variant}"


def config_of(name: str, *overrides: str) -> ConfigDict:
    """The config here of an original one, in float32."""
    return config_files.load(recipe_of(name), ["--config.model.dtype=float32", *overrides])


def name_of(path: pathlib.Path) -> str:
    """The original config of a recording; a second input size of the same model follows "__"."""
    return path.stem.split("__")[0]
