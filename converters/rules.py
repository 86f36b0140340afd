"""Name rules: from the PyTorch names of the reference to jaxseg's parameter paths, and back.

Paths mirror the names, so there are few rules: list indices join their name (`levels.0` becomes
`levels_0`), norms lose the index they have in a Sequential with permutes, and leaves are renamed
and transposed to channels last.
"""

import re
from collections.abc import Mapping

import numpy as np

# (pattern in the PyTorch name, replacement), in order.
MODULE_RULES = (
    (r"\bdw_conv\.0\b", "dw_conv"),
    (r"\bdw_conv\.1\.1\b", "dw_norm"),
    (r"\b((?:res_post_)?norm\d?)\.[01]\b", r"\1"),
    (r"\b(post_norms\.\d+)\.0\b", r"\1"),
    (r"\bcenter_feature_scale_proj_(weight|bias)\b", r"center_feature_scale_proj.\1"),
    (r"\b(psp_modules\.\d+)\.1\b", r"\1"),
    (r"\.(\d+)\b", r"_\1"),
)
BATCH_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def to_path(name: str, ndim: int) -> tuple[str, str] | None:
    """The collection and path of a PyTorch tensor; None for one that jaxseg has no use for."""
    for pattern, replacement in MODULE_RULES:
        name = re.sub(pattern, replacement, name)
    *module, leaf = name.split(".")
    if leaf == "num_batches_tracked":
        return None
    collection = "batch_stats" if leaf in BATCH_STATISTICS else "params"
    if leaf == "weight":
        leaf = "kernel" if ndim > 1 else "scale"
    return collection, "/".join([*module, BATCH_STATISTICS.get(leaf, leaf)])


def to_channels_last(tensor: np.ndarray, leaf: str) -> np.ndarray:
    """Kernels from [out, in, h, w] or [out, in] to [h, w, in, out] or [in, out]; others as are."""
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if leaf == "kernel" else tensor


def from_state_dict(state_dict: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Nested variables {"params", "batch_stats"} with the values of a PyTorch state dict."""
    variables: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for name, tensor in state_dict.items():
        target = to_path(name, tensor.ndim)
        if target is None:
            continue
        collection, path = target
        *parents, leaf = path.split("/")
        node = variables[collection]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = to_channels_last(tensor, leaf)
    return variables
