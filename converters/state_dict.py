"""Finds the weights in the content of a checkpoint file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from jaxseg.errors import CheckpointError

# Keys under which training programs store the weights, in the reference's search order.
NESTING = ("state_dict", "model", "module", "teacher")
EMA_NESTING = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# mmcv's EMAHook keeps averages as buffers: "ema_" + the parameter's name with "_" for every dot.
EMA_PREFIX = "ema_"
DISTRIBUTED_PREFIX = "module."
META = ("mmcv_version", "mmseg_version", "mmengine_version", "epoch", "iter", "time")


@dataclass(frozen=True, eq=False)
class StateDict:
    """Holds the weights of a checkpoint.

    Attributes:
      tensors: the weights, by the names that the model gave them.
      beside: everything else in the file, which is not used, each with its size: "optimizer (2
        entries)".
      meta: facts about the file for printing: versions, epoch, iter, classes.
    """

    tensors: dict[str, np.ndarray]
    beside: tuple[str, ...]
    meta: dict[str, str]


def find_state_dict(obj: object, *, prefer_ema: bool = False) -> StateDict:
    """Finds the weights in the content of a checkpoint file.

    The content is for example {"state_dict": ..., "meta": ...}. The weights are under `state_dict`,
    `model`, `module` or `teacher`, in this order, or else in the dict itself. If the first name has
    the prefix `module.`, it is removed from all names. The exponential moving average (EMA) of the
    weights has a dict of its own (`state_dict_ema`, `model_ema`, ...) or consists of mmcv's buffers
    (`ema_backbone_conv_weight`). By default the average is not used and is listed in
    `StateDict.beside`.

    Args:
      obj: the content of the file.
      prefer_ema: use the average in place of the plain weights.

    Raises:
      CheckpointError: if there are no tensors, or no averaged ones although `prefer_ema` asks for
        them.
    """
    if not isinstance(obj, Mapping):
        raise CheckpointError(
            f"The file holds a {type(obj).__name__}, not a dict of tensors. Use a file that "
            "torch.save wrote from a state_dict, or from a dict that contains one."
        )
    entries, beside, meta, found_ema = obj, [], {}, False
    for _ in NESTING:  # no file nests deeper; a dict that contains itself would never end
        meta = _meta(entries) | meta
        inner, ema = _first_dict(entries, NESTING), _first_dict(entries, EMA_NESTING)
        if prefer_ema and ema:
            inner, found_ema = ema, True
        if inner is None:
            break
        beside += [_described(key, value) for key, value in entries.items() if key != inner]
        entries = entries[inner]

    tensors = {
        name: value
        for name, value in entries.items()
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }
    beside += [_described(key, value) for key, value in entries.items() if key not in tensors]
    if not tensors:
        raise CheckpointError(f"The file holds no weights, only {_listed(beside)}.")
    tensors = _without_prefix(tensors)
    buffers = _averages(tensors)
    if prefer_ema and not (found_ema or buffers):
        raise CheckpointError(
            "The file holds no averaged (EMA) weights, only plain ones"
            + (f"; it also holds {_listed(beside)}." if beside else ".")
        )
    if buffers:
        left = "their plain weights" if prefer_ema else f"averages, {EMA_PREFIX}*"
        beside.append(f"{len(buffers)} tensors ({left})")
        replaced = {name: tensors[buffer] for buffer, name in buffers.items() if prefer_ema}
        tensors = {n: replaced.get(n, it) for n, it in tensors.items() if n not in buffers}
    return StateDict(tensors, tuple(beside), meta)


def _first_dict(entries: Mapping, keys: tuple[str, ...]) -> str | None:
    """Returns the first of the keys whose value is a dict."""
    return next((key for key in keys if isinstance(entries.get(key), Mapping)), None)


def _without_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Restores the names that a model had before it was wrapped for training on several devices."""
    if not next(iter(tensors)).startswith(DISTRIBUTED_PREFIX):
        return tensors
    stripped = {name.removeprefix(DISTRIBUTED_PREFIX): it for name, it in tensors.items()}
    if len(stripped) < len(tensors):
        raise CheckpointError(
            f"The file holds tensors both with and without the prefix {DISTRIBUTED_PREFIX!r}, "
            "under otherwise equal names. Save one of the two models alone."
        )
    return stripped


def _averages(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Maps the name of each buffer that holds an average to the name of its parameter."""
    buffer_of = {name: EMA_PREFIX + name.replace(".", "_") for name in tensors}
    return {buffer: name for name, buffer in buffer_of.items() if buffer in tensors}


def _meta(entries: Mapping) -> dict[str, str]:
    """Returns what is worth printing of mmcv's `meta`, and of entries such as an epoch."""
    meta = entries.get("meta")
    facts = {**entries, **(meta if isinstance(meta, Mapping) else {})}
    plain = str | int | float | np.number
    result = {key: str(facts[key]) for key in META if isinstance(facts.get(key), plain)}
    classes = facts.get("CLASSES")
    if isinstance(classes, list | tuple):
        result["classes"] = str(len(classes))
    return result


def _described(key: object, value: object) -> str:
    """Returns an entry's key and a few words about its value."""
    match value:
        case np.ndarray():
            return f"{key} (tensor of shape {value.shape})"
        case Mapping():
            kind = "averaged weights, " if key in EMA_NESTING else ""
            return f"{key} ({kind}{_counted(value)})"
        case list() | tuple() | set():
            return f"{key} ({_counted(value)})"
        case bool() | int() | float() | np.number():
            return f"{key} ({value})"
    return f"{key} ({type(value).__name__})"


def _counted(entries: Collection) -> str:
    return "1 entry" if len(entries) == 1 else f"{len(entries)} entries"


def _listed(entries: list[str]) -> str:
    shown = ", ".join(entries[:8]) or "nothing"
    return f"{shown} and {len(entries) - 8} more" if len(entries) > 8 else shown
