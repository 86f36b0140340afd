"""Finds the checkpoint that a name stands for, and writes models to be published.

A name stands for a run, a published model, or a PyTorch file.

Published models and PyTorch files are converted once, into the cache. From then on they need no
network and no conversion.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxseg import siblings
from jaxseg.atomic_files import write_text
from jaxseg.checkpoints.weights import config_from_json, find_checkpoint, load_metrics
from jaxseg.config import load_config
from jaxseg.data.datasets.description import Dataset
from jaxseg.errors import CheckpointError, ConfigError, OutputError, first_few
from jaxseg.models.segmentation_model import Variables
from jaxseg.workdir import CHECKPOINTS, AnyPath, in_bucket
from jaxseg.zoo import catalogue, hub
from jaxseg.zoo.download import one_at_a_time
from jaxseg.zoo.model_card import OURS, model_card

siblings.claim("converters")

from converters import convert, export_torch  # noqa: E402
from converters.torch_files import shards  # noqa: E402

ZOO = "zoo:"


def find(source: str | os.PathLike, config: str | ConfigDict | None = None) -> AnyPath:
    """Returns the checkpoint that `source` stands for. It is converted first if necessary.

    Args:
      source: a run's directory or one of its checkpoints, also in a bucket (gs://); the name of a
        published model, with or without "zoo:"; a PyTorch file; a folder that `save` has written;
        or hf://OWNER/REPOSITORY for such a folder on the Hugging Face Hub, where
        hf://OWNER/REPOSITORY/FILE is a PyTorch file.
      config: the config of a PyTorch file, as FILE:VARIANT or loaded. By default that of the
        published model whose file has the same name.

    Raises:
      CheckpointError: if there is no checkpoint, or it cannot be downloaded or converted.
      ConfigError: for a name that is neither published nor a path, with the nearest names; or if
        the Hub is named without the package huggingface_hub.
      OutputError: if the cache cannot be written.
    """
    if os.fspath(source).startswith(hub.PREFIX):
        path = hub.fetch(os.fspath(source))
    elif in_bucket(source):
        return find_checkpoint(source)
    else:
        path = pathlib.Path(source)
    if hub.is_published(path):
        return _of_file(path / hub.WEIGHTS, config or _read_config(path / hub.CONFIG))
    if path.is_dir() and not shards.index_beside(path):
        return find_checkpoint(path)
    if path.exists():
        return _of_file(path, config)
    return _of_zoo(os.fspath(source))


def save(
    folder: str | os.PathLike,
    variables: Variables,
    config: ConfigDict,
    dataset: Dataset,
    *,
    checkpoint: AnyPath | None,
    metrics: Mapping[str, Any] | None,
    name: str,
    license: str | None,
) -> pathlib.Path:
    """Writes a model as three files: the weights, the config and a model card.

    `model.safetensors` has the names and layouts of the original PyTorch code.

    Args:
      folder: the folder; made if it is missing.
      variables: {"params", "batch_stats"}.
      config: the resolved config of the model.
      dataset: the dataset that it is evaluated on.
      checkpoint: where the variables come from, if that is known.
      metrics: the content of `metrics.json` of an evaluation; by default that of the checkpoint's
        run, if it is of this checkpoint.
      name: what the card gives to `Segmenter.from_pretrained`.
      license: the license of the weights, as the Hugging Face Hub names it.

    Returns:
      The folder.

    Raises:
      ConfigError: for metrics of another checkpoint; if the folder is that of a run, has a
        README.md of its own, or is in a bucket; or without the package huggingface_hub.
      OutputError: if a file cannot be written.
    """
    if in_bucket(folder):
        raise ConfigError(f"{folder}: a model is written into a folder of this machine")
    folder = pathlib.Path(folder)
    if (folder / CHECKPOINTS).exists():
        raise ConfigError(f"{folder} is the directory of a run; choose another folder")
    readme = folder / hub.CARD
    if readme.exists() and OURS not in readme.read_text(errors="replace"):
        raise ConfigError(f"{readme} is not a model card of jaxseg; choose another folder")
    if metrics is None and checkpoint:
        metrics = load_metrics(checkpoint)
    step = int(checkpoint.name) if checkpoint else None
    card = model_card(config.to_dict(), dataset.name, dataset.classes, metrics, step, name, license)
    export_torch.write(variables, config, folder / hub.WEIGHTS)
    write_text(folder / hub.CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
    write_text(readme, card)
    return folder


def _read_config(path):
    """Reads the config that `save` has written."""
    try:
        stored = config_from_json(json.loads(path.read_text()))
        for key in ("variant", "model", "data", "eval"):
            stored[key]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not the config of a jaxseg model; name the config of the weights beside it,"
            " as --config FILE:VARIANT"
        ) from error
    return ConfigDict(stored)


def split_names(models: str) -> list[str]:
    """Splits a text at its commas into what `find` takes. What exists as a path is one name."""
    if pathlib.Path(models).exists():
        return [models]
    return [name.strip() for name in models.split(",") if name.strip()] or [models]


def add_arguments(parser: argparse.ArgumentParser, several: bool = False):
    """Adds the arguments of a command line that name a model: `model` and `config`.

    Args:
      parser: the parser.
      several: whether the help says that several models may be named (`split_names`).
    """
    also = "; several with commas between them are averaged" if several else ""
    parser.add_argument(
        "--model",
        "--checkpoint",
        required=True,
        metavar="MODEL,..." if several else "MODEL",
        help=f"a published model (jaxseg zoo), a PyTorch file, hf://OWNER/REPOSITORY, a run or its"
        f" checkpoints/STEP{also}",
    )
    parser.add_argument("--config", metavar="FILE:VARIANT", help="the config of a PyTorch file")


def _of_zoo(name):
    try:
        model = catalogue.find_model(name.removeprefix(ZOO))
    except ConfigError as error:
        if name.startswith(ZOO):
            raise
        if len(pathlib.Path(name).parts) > 1:  # no name of a model has a slash
            raise CheckpointError(f"{name}: {_what_is_there(pathlib.Path(name))}") from error
        raise ConfigError(f"{name}: there is no such file or directory, and {error}") from error
    target = _cache() / model.name
    if not target.exists():
        path, backbone = catalogue.fetch_weights(model.name), catalogue.fetch_backbone(model.name)
        _convert(path, load_config(model.config), target, backbone)
    return find_checkpoint(target)


def _what_is_there(path):
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"there is no such file or directory; {folder} holds{first_few(names) or ' nothing'}"


def _of_file(path, config):
    named = [m for m in catalogue.MODELS if m.url and m.file_name == path.name]
    if config is None:
        if not named:
            raise ConfigError(
                f"{path} does not say which model it is of; name its config, such as"
                " config='configs/cityscapes.py:upernet_internimage_t'"
            )
        config = named[0].config
    config = load_config(config) if isinstance(config, str) else config
    content = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for part in shards.files_of(path):
        with part.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    target = _cache() / f"{path.name.partition('.')[0]}-{content.hexdigest()[:16]}"
    if not target.exists():
        backbone = catalogue.fetch_backbone(named[0].name) if named else None
        _convert(path, config, target, backbone)
    return find_checkpoint(target)


def _cache():
    return catalogue.cache_folder() / "converted"


def _convert(path, config, target, backbone):
    """Converts into a temporary folder, and renames it when it is complete."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target.parent):
            if target.exists():  # another process has made it meanwhile
                return
            shutil.rmtree(partial, ignore_errors=True)
            try:
                conversion = convert.convert(path, config, partial, backbone=backbone)
                if fresh := sorted({name.split("/")[1] for name in conversion.plan.fresh}):
                    raise CheckpointError(
                        f"{path} has no weights for {', '.join(fresh)}; train the model first,"
                        f" starting from --config.init={path}"
                    )
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, OutputError) as error:
        raise OutputError(
            f"{path.name} cannot be converted into {target}: {error}\n"
            "  JAXSEG_CACHE names another folder"
        ) from error
