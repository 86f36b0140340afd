"""Reads from a PyTorch file what a model takes: its tensors, renamed and transposed."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from converters import conversion_plan, dinov3, rules, state_dict
from converters.torch_files import torch_file
from jaxseg import parameter_paths
from jaxseg.errors import CheckpointError
from jaxseg.models.segmentation_model import build_model, variable_shapes


@dataclasses.dataclass(frozen=True)
class TorchWeights:
    """Holds what a model takes from a PyTorch file.

    Attributes:
      plan: what becomes of every tensor.
      arrays: by path, channels last. They are views of the mapped file, so each part is read when
        it is used. Only resized tables of positions are copies.
      beside: what else the file holds.
      classes: how many classes the file says its dataset has; None if it does not say.
      taken_off: what modules around the model added to the names, such as "module.".
    """

    plan: conversion_plan.Plan
    arrays: dict[str, np.ndarray]
    beside: tuple[str, ...] = ()
    classes: str | None = None
    taken_off: tuple[str, ...] = ()


def from_state_dict(tensors: Mapping[str, np.ndarray], config: ConfigDict) -> dict[str, Any]:
    """Returns the variables of `config.model` with the values of a segmentor's PyTorch state dict.

    Raises:
      CheckpointError: if a tensor or a variable has no counterpart; the message names them.
    """
    wanted = parameter_paths.shapes(variable_shapes(build_model(config.model)))
    names = {"source": "the state dict", "model": config.variant}
    tensors, _ = dinov3.common_names(tensors)
    return parameter_paths.nested(match(tensors, wanted, **names).arrays)


def read_weights(
    path: str | pathlib.Path,
    wanted: Mapping[str, tuple[int, ...]],
    *,
    model: str,
    transfer: bool = False,
    window: tuple[int, int] | None = None,
    prefer_ema: bool = False,
    backbone: str | pathlib.Path | None = None,
) -> TorchWeights:
    """Reads from a PyTorch file what a model takes.

    Args:
      path: the file.
      wanted: the shapes of the model's variables, by path.
      model: what messages call the model.
      transfer: accept heads of another kind or number of classes, which stay fresh, and positions
        for another window, which are resized.
      window: (height, width) of the model's tables of relative positions, in patches; None for
        square windows.
      prefer_ema: take the moving average of the weights that the file keeps in addition to them.
      backbone: the file of the backbone, if `path` holds the other parts alone. What `path` has of
        the backbone counts.

    Raises:
      CheckpointError: if a file cannot be read, or its tensors are not those of the model.
    """
    found = _find(path, prefer_ema)
    if backbone:
        of_backbone = _find(backbone, False)
        prefixed = {
            f"backbone.{name.removeprefix('backbone.')}": name for name in of_backbone.tensors
        }
        found = dataclasses.replace(
            found,
            tensors={name: of_backbone.tensors[own] for name, own in prefixed.items()}
            | found.tensors,
            file_names={name: of_backbone.file_names[own] for name, own in prefixed.items()}
            | found.file_names,
        )
    if refused := found.inert.keys() & {rules.to_name(name) for name in wanted}:
        name = min(refused)
        raise CheckpointError(
            f"{path}: {name} is an object of {found.inert[name]}, not a plain tensor; nothing of it"
            " was run. Load the file with the code that wrote it and save plain tensors."
        )
    weights = match(
        found.tensors,
        wanted,
        source=str(path),
        model=model,
        transfer=transfer,
        window=window,
        file_names=found.file_names,
    )
    return dataclasses.replace(
        weights,
        beside=found.beside,
        classes=found.meta.get("classes"),
        taken_off=prefixes_taken_off(found.file_names),
    )


def _find(path, prefer_ema):
    """Returns the weights of a file, by the names that the rules know."""
    content = torch_file.read_torch_file(path)
    try:
        found = state_dict.find_state_dict(content, prefer_ema=prefer_ema)
        tensors, sources = dinov3.common_names(found.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    file_names = {name: found.file_names[own] for name, own in sources.items()}
    return dataclasses.replace(found, tensors=tensors, file_names=file_names)


def prefixes_taken_off(file_names: Mapping[str, str]) -> tuple[str, ...]:
    """Returns what modules around the model added to the names, sorted.

    >>> prefixes_taken_off({"backbone.a": "module.backbone._orig_mod.a"})
    ('_orig_mod.', 'module.')
    """
    added = set()
    for name, own in file_names.items():
        kept = iter(name.split("."))
        following = next(kept, None)
        for part in own.split("."):
            if part == following:
                following = next(kept, None)
            else:
                added.add(f"{part}.")
    return tuple(sorted(added))


def match(tensors: Mapping[str, np.ndarray], wanted, **options) -> TorchWeights:
    """Carries out `conversion_plan.make_plan`; only resized tables are copied.

    Args:
      tensors: the file's tensors, by PyTorch name.
      wanted: the shapes of the model's variables, by path.
      **options: further arguments of `make_plan`.

    Raises:
      CheckpointError: if a tensor or a variable has no counterpart.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    plan = conversion_plan.make_plan(shapes, wanted, **options)
    arrays = {path: rules.to_channels_last(tensors[name], path) for name, path in plan.used.items()}
    made = {table: table.made_from(tensors[table.source]) for table in set(plan.tables.values())}
    arrays |= {path: made[table] for path, table in plan.tables.items()}
    return TorchWeights(plan, arrays)
