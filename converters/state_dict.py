"""Finds the weights in the content of a checkpoint file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from converters.torch_files.restricted_pickle import Inert
from jaxseg.errors import CheckpointError

# Keys under which training programs store the weights, in the reference's search order.
NESTING = ("state_dict", "model", "module", "teacher")
EMA_NESTING = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# mmcv's EMAHook keeps averages as buffers: "ema_" + the parameter's name with "_" for every dot.
EMA_PREFIX = "ema_"
# Modules that wrap another one, for training on several devices or compilation. Their names stand
# in front of the model's, in any order, or within them if only a part is wrapped.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
WRAPPERS |= {"_forward_module"}
# What training programs call the model that they hold, and its average.
HOLDERS = ("model", "net", "network", "segmentor", "student")
EMA_HOLDERS = ("ema_model", "model_ema", "ema", "teacher")
EMA_STARTS = tuple(f"{holder}." for holder in EMA_HOLDERS)
PARTS = ("backbone.", "decode_head.")
META = ("mmcv_version", "mmseg_version", "mmengine_version", "epoch", "iter", "time")


@dataclass(frozen=True, eq=False)
class StateDict:
    """Holds the weights of a checkpoint.

    Attributes:
      tensors: the weights, by the names that the model gave them.
      file_names: the names in the file, by those of `tensors`.
      inert: the objects among the weights that are no tensors, by name: what class they are of.
      beside: everything else in the file, which is not used, each with its size: "optimizer (2
        entries)".
      meta: facts about the file for printing: versions, epoch, iter, classes.
    """

    tensors: dict[str, np.ndarray]
    beside: tuple[str, ...]
    meta: dict[str, str]
    file_names: dict[str, str]
    inert: dict[str, str]


def find_state_dict(obj: object, *, prefer_ema: bool = False) -> StateDict:
    """Finds the weights in the content of a checkpoint file.

    The content is for example {"state_dict": ..., "meta": ...}. The weights are under `state_dict`,
    `model`, `module` or `teacher`, in this order, or else in the dict itself. Names lose what
    modules around the model added (`WRAPPERS`, `HOLDERS`). The exponential moving average (EMA) of
    the weights has a dict of its own (`state_dict_ema`, `model_ema`, ...) or consists of mmcv's
    buffers (`ema_backbone_conv_weight`). By default the average is not used and is listed in
    `StateDict.beside`.

    Args:
      obj: the content of the file.
      prefer_ema: use the average in place of the plain weights.

    Raises:
      CheckpointError: if there are no tensors, or no averaged ones although `prefer_ema` asks for
        them.
    """
    if isinstance(obj, Inert) and not obj:
        raise CheckpointError(
            f"The file holds an object of the class {obj.name}, not a dict of tensors. Nothing of"
            " it was run. Load it with the code that wrote it and save only the state_dict."
        )
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
    names, others = _names_in_model(tensors, prefer_ema)
    found_ema |= any(_without_wrappers(own).startswith(EMA_STARTS) for own in names.values())
    beside += others
    tensors = {name: tensors[own] for name, own in names.items()}
    inert = {
        _without_wrappers(name): value.name
        for name, value in entries.items()
        if isinstance(name, str) and isinstance(value, Inert)
    }
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
    return StateDict(tensors, tuple(beside), meta, names, inert)


def _first_dict(entries: Mapping, keys: tuple[str, ...]) -> str | None:
    """Returns the first of the keys whose value is a dict with entries, or an empty plain dict."""
    for key in keys:
        value = entries.get(key)
        if isinstance(value, Mapping) and (value or not isinstance(value, Inert)):
            return key
    return None


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _names_in_model(
    tensors: Mapping[str, np.ndarray], prefer_ema: bool
) -> tuple[dict[str, str], list[str]]:
    """Restores the names that the model gave its tensors.

    Returns:
      The file's name of each tensor by that name, and what lies beside the model, in words.

    Raises:
      CheckpointError: if two tensors have one name then.
    """
    names: dict[str, str] = {}
    for own in tensors:
        name = _without_wrappers(own)
        if name in names:
            raise CheckpointError(
                f"The file holds {names[name]!r} and {own!r}, which are the same tensor of a model"
                " and of a module around it. Save one of the two alone."
            )
        names[name] = own
    beside: list[str] = []
    if any(name.startswith(PARTS) for name in names):
        return names, beside
    holders: dict[str, dict[str, str]] = {}
    for name, own in names.items():
        holder, _, rest = name.partition(".")
        holders.setdefault(holder, {})[rest] = own
    order = (*EMA_HOLDERS, *HOLDERS) if prefer_ema else (*HOLDERS, *EMA_HOLDERS)
    there = [holder for holder in order if "" not in holders.get(holder, {"": ""})]
    whole = [h for h in there if any(name.startswith(PARTS) for name in holders[h])]
    # A backbone has no such parts, and then all of its names begin with one holder.
    chosen = whole or (there if len(holders) == 1 else [])
    if not chosen:
        return names, beside
    for holder, group in holders.items():
        if holder != chosen[0]:
            kind = "averaged weights, " if holder in EMA_HOLDERS else ""
            beside.append(f"{holder} ({kind}{len(group)} tensors)")
    inner, more = _names_in_model(
        {name: tensors[own] for name, own in holders[chosen[0]].items()}, prefer_ema
    )
    return {name: holders[chosen[0]][own] for name, own in inner.items()}, beside + more


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
    dataset = facts.get("dataset_meta")  # of mmengine; CLASSES is mmcv's
    classes = facts.get("CLASSES") or (isinstance(dataset, Mapping) and dataset.get("classes"))
    if isinstance(classes, list | tuple):
        result["classes"] = str(len(classes))
    return result


def _described(key: object, value: object) -> str:
    """Returns an entry's key and a few words about its value."""
    match value:
        case Inert():
            return f"{key} (an object of {value.name}, not run)"
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
