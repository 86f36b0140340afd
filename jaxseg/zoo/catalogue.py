"""Finds published models by their names, and downloads their weights.

The rows lie beside this file: a file for each family of models, and one for the pre-trained
backbones. To add a family, write a file like `internimage.py` and add it to `FAMILIES`.
"""

import difflib
import fnmatch
import os
import pathlib
from collections.abc import Iterable

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.zoo import dinov3, download, internimage, vit_adapter
from jaxseg.zoo.backbones import BACKBONES
from jaxseg.zoo.weights import Model

# Models with published weights, and models of the authors whose weights were not published.
FAMILIES = (internimage, vit_adapter, dinov3)
MODELS: tuple[Model, ...] = tuple(row for family in FAMILIES for row in family.MODELS)
WITHOUT_WEIGHTS: tuple[Model, ...] = tuple(
    row for family in FAMILIES for row in family.WITHOUT_WEIGHTS
)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models with published weights that match a shell pattern.

    They are in the order of the table.
    """
    return [model.name for model in MODELS if fnmatch.fnmatchcase(model.name, pattern)]


def find_model(name: str) -> Model:
    """Returns the model of a name, with or without published weights.

    Raises:
      ConfigError: for an unknown name, with the nearest ones.
    """
    return _find(name, (*MODELS, *WITHOUT_WEIGHTS))


def find_recipe(variant: str, dataset: str) -> Model | None:
    """Returns the model of the published tables for a recipe, or None if there is none.

    Mapillary with its labels mapped to Cityscapes counts as Mapillary.

    Args:
      variant: the variant of the recipe.
      dataset: the dataset of the recipe.
    """
    for model in (*MODELS, *WITHOUT_WEIGHTS):
        if model.config.endswith(f":{variant}") and dataset.startswith(model.dataset):
            return model if model.params_m else None  # the tables have the parameters of all
    return None


def fetch_weights(name: str) -> pathlib.Path:
    """Downloads the checkpoint of a published model or backbone, unless it is in the cache.

    Returns:
      Its path: the published file name in `checkpoints/` of the cache directory. That directory is
      JAXSEG_CACHE, or ~/.cache/jaxseg if it is not set.

    Raises:
      ConfigError: for an unknown name, with the nearest ones, and for a model whose weights were
        not published.
      CheckpointError: if it cannot be downloaded or is gated, with the path to put the file at by
        hand; or if such a file is another one.
    """
    weights = _find(name, (*MODELS, *WITHOUT_WEIGHTS, *BACKBONES))
    if weights.url is None:
        recipe = find_model(name).config
        raise ConfigError(
            f"the weights of {name} were not published; train its recipe: --config {recipe}"
        )
    target = cache_folder() / "checkpoints" / weights.file_name
    if weights.gated_by and target.exists():
        download.check(target, weights.sha256 or "")
        return target
    if weights.gated_by:
        raise CheckpointError(
            f"{weights.file_name} cannot be downloaded by a program: ask for access at"
            f" {weights.gated_by}\n  Download it by hand ({weights.url})\n  and put it at {target}"
            "\n  or set JAXSEG_CACHE to another folder"
        )
    try:
        return download.fetch(weights.url, target, weights.sha256)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n  or set JAXSEG_CACHE to another folder") from error


def fetch_backbone(name: str) -> pathlib.Path | None:
    """Downloads the backbone of a published model whose checkpoint holds all but that.

    Returns:
      Its path as in `fetch_weights`, or None if the checkpoint holds the backbone, too.

    Raises:
      CheckpointError: as in `fetch_weights`.
    """
    backbone = getattr(_find(name, (*MODELS, *WITHOUT_WEIGHTS, *BACKBONES)), "backbone", None)
    return fetch_weights(backbone) if backbone else None


def cache_folder() -> pathlib.Path:
    """Returns the folder that keeps downloads: JAXSEG_CACHE, by default ~/.cache/jaxseg.

    Raises:
      ConfigError: if JAXSEG_CACHE is not set and the user has no home directory.
    """
    folder = os.environ.get("JAXSEG_CACHE")
    try:
        return pathlib.Path(folder or "~/.cache/jaxseg").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home directory to keep downloads in; set JAXSEG_CACHE to a folder"
        ) from error


def _find(name, rows):
    by_name = {row.name: row for row in rows}
    if name not in by_name:
        raise ConfigError(
            f"no published weights {name!r}; the nearest are {nearest(name, by_name)}"
            " (jaxseg zoo lists them)"
        )
    return by_name[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the three names most similar to `name`, for messages."""
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0))
