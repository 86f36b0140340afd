"""Converts PyTorch names of the reference to jaxseg's parameter paths, and back.

Paths mirror the names, so there are few rules. List indices join their name (`levels.0` becomes
`levels_0`). Norms lose the index that they have in a Sequential with permutes. Leaves are renamed
and transposed to channels last. A path starts with its collection: `params/backbone/…/kernel`.

A conversion asks for the name of each path of the model (`to_name`). `to_path` is its inverse: a
new rule needs a line in both tables.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg import parameter_paths

# (pattern in the name, replacement), applied in order.
TO_PATH = (
    (r"\bdw_conv\.0\b", "dw_conv"),
    (r"\bdw_conv\.1\.1\b", "dw_norm"),
    (r"\b((?:res_post_)?norm\d?)\.[01]\b", r"\1"),
    (r"\b(post_norms\.\d+)\.0\b", r"\1"),
    (r"\b(center_feature_scale_proj|attn\.in_proj)_(weight|bias)\b", r"\1.\2"),
    (r"\b(query_embed|query_feat|level_embed|level_encoding)\.weight$", r"\1.embedding"),
    (r"\b(psp_modules\.\d+)\.1\b", r"\1"),
    (r"\b((?:spatial|temporal)_pos_embed)\.weight$", r"\1"),
    (r"\.(\d+)\b", r"_\1"),
)
TO_NAME = (
    (r"_(\d+)(?=[._])", r".\1"),
    (r"\b((?:spatial|temporal)_pos_embed)$", r"\1.weight"),
    (r"\b(psp_modules\.\d+)\b", r"\1.1"),
    (r"\b(center_feature_scale_proj|attn\.in_proj)\.(weight|bias)\b", r"\1_\2"),
    (r"\b(post_norms\.\d+)\b", r"\1.0"),
    (r"\b(patch_embed\.norm\d|downsample\.norm)\b", r"\1.1"),
    (r"\b(levels\.\d+(?:\.norm|\.blocks\.\d+\.(?:res_post_)?norm\d))\b", r"\1.0"),
    (r"\bdw_conv\b", "dw_conv.0"),
    (r"\bdw_norm\b", "dw_conv.1.1"),
)
# The end of a name -> the leaf that it becomes in the collection `batch_stats`.
BATCH_STATISTICS = {"running_mean": "mean", "running_var": "var", "periods": "periods"}
COUNTER = "num_batches_tracked"  # every batch norm has one; nothing reads it

# (pattern in the name, why jaxseg has no use for the tensor).
IGNORED = (
    (rf"\.{COUNTER}$", "counters of batch norm"),
    (r"\.relative_position_index$", "follows from the grid"),
    (r"^n_averaged$", "counter of averaged weights"),
    (r"\.bias_mask$", "mask of the keys' bias, which the model has built in"),
    (r"\bmask_token$", "prediction of masked patches"),
    (r"\blocal_cls_norm\.", "norm of the pre-training"),
)
# The same for files of pre-trained backbones, if the model has no such tensor.
IGNORED_OF_PRETRAINED = (
    (
        r"^backbone\.(conv_head|dcnv3_head_x\d|head|fc_norm|clip_projector|avgpool)\.",
        "classifier of the pre-training",
    ),
    (r"^backbone\.cls_token$", "class token, which the model does not have"),
    (r"^backbone\.norm\.(weight|bias)$", "last norm of the pre-training"),
    (r"^backbone\.(lm_head|cls_pt_layers)\.", "prediction of masked patches"),
)
# (pattern in the name, why no file of a pre-trained backbone has the tensor).
FRESH_OF_PRETRAINED = (
    (
        r"^backbone\.(spm|interactions|level_embed|up|norm[1-4])\b",
        "the adapter, which the pre-training did not have",
    ),
    (r"^backbone\.fpn\d\b", "the feature pyramid, which the pre-training did not have"),
)


def to_path(name: str, ndim: int) -> str:
    """Returns the path of a PyTorch tensor.

    >>> to_path("backbone.levels.0.blocks.1.dcn.offset.weight", ndim=2)
    'params/backbone/levels_0/blocks_1/dcn/offset/kernel'

    Args:
      name: the PyTorch name.
      ndim: the number of axes; a `weight` with one axis is a scale, any other is a kernel.
    """
    for pattern, replacement in TO_PATH:
        name = re.sub(pattern, replacement, name)
    *module, leaf = name.split(".")
    collection = "batch_stats" if leaf in BATCH_STATISTICS else "params"
    if leaf == "weight":
        leaf = "kernel" if ndim > 1 else "scale"
    return "/".join([collection, *module, BATCH_STATISTICS.get(leaf, leaf)])


def to_name(path: str) -> str:
    """Returns the PyTorch name of a path, the inverse of `to_path`.

    >>> to_name("batch_stats/decode_head/fpn_bottleneck/bn/mean")
    'decode_head.fpn_bottleneck.bn.running_mean'
    """
    collection, *module, leaf = path.split("/")
    if collection == "batch_stats":
        leaf = next(name for name, own in BATCH_STATISTICS.items() if own == leaf)
    elif leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    name = ".".join([*module, leaf])
    for pattern, replacement in TO_NAME:
        name = re.sub(pattern, replacement, name)
    return name


def to_channels_last(tensor: np.ndarray, path: str) -> np.ndarray:
    """Transposes kernels to channels last; other arrays stay as they are.

    Kernels go from [out, in, h, w] or [out, in] to [h, w, in, out] or [in, out].
    """
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if path.endswith("/kernel") else tensor


def to_channels_first(array: np.ndarray, path: str) -> np.ndarray:
    """Transposes kernels to channels first, the inverse of `to_channels_last`."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if path.endswith("/kernel") else array


def channels_last_shape(shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """Returns the shape of the result of `to_channels_last`."""
    return (*shape[2:], shape[1], shape[0]) if path.endswith("/kernel") else tuple(shape)


def channels_first_shape(shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """Returns the shape of the result of `to_channels_first`."""
    return (shape[-1], shape[-2], *shape[:-2]) if path.endswith("/kernel") else tuple(shape)


def to_variables(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts a PyTorch state dict to nested variables {"params", "batch_stats"}.

    This function only applies the rules. `torch_weights.from_state_dict` also checks that the
    result fits a model.
    """
    arrays = {}
    for name, tensor in state_dict.items():
        if not name.endswith(COUNTER):
            path = to_path(name, tensor.ndim)
            arrays[path] = to_channels_last(tensor, path)
    return parameter_paths.nested(arrays)
