"""The original configs, by their recorded manifests, and the variants that are theirs here."""

import json
import pathlib
import re

from ml_collections import ConfigDict
from reference_files import REFERENCE

from jaxseg import config_files

MANIFESTS = sorted(
    path
    for path in (REFERENCE / "internimage" / "manifests").glob("*.json")
    if not path.stem.startswith("mask2former")  # not built yet
)


def manifest_of(name: str) -> dict:
    """What was recorded of an original config: settings, names and shapes of its tensors."""
    return json.loads((REFERENCE / "internimage" / "manifests" / f"{name}.json").read_text())


def config_of(name: str, *overrides: str) -> ConfigDict:
    """The config here of an original one, in float32.

    The original's name is HEAD_internimage_SIZE_…_DATASET; `mapillary2X` is X started from there.
    """
    head, family, size, *_, dataset = name.split("_")
    source, dataset = re.fullmatch(r"(?:(mapillary)2)?(\w+)", dataset).groups()
    variant = f"{head}_{family}_{size}" + (f"_{source}" if source else "")
    file = f"configs/{dataset}.py:{variant}"
    return config_files.load(file, ["--config.model.dtype=float32", *overrides])


def name_of(path: pathlib.Path) -> str:
    """The original config of a recording; a second input size of the same model follows "__"."""
    return path.stem.split("__")[0]
