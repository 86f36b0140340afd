"""Renames the tensors of DINOv3: three namings of the backbone, and the original's segmentors.

Names here are those of a segmentor of mmsegmentation, which all other files have: `backbone.…` and
`decode_head.…`. The original puts the backbone in front of the adapter and the head by numbers:
`segmentation_model.0.backbone.…`. Hugging Face's transformers and timm name the backbone's tensors
in their own ways, and split some of them.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxseg.errors import CheckpointError

# (beginning of a name of the original, the same here); `#` is a number.
PARTS = (
    ("segmentation_model.0.backbone.", "backbone."),  # under an adapter
    ("segmentation_model.0.feature_model.", "backbone."),  # under a linear head
    ("segmentation_model.0.", "backbone."),  # the adapter
    ("segmentation_model.1.", "decode_head."),
)
_ENCODER = "pixel_decoder.encoder.encoder.layers.#", "pixel_decoder.encoder.layers.#"
_CROSS = "predictor.transformer_cross_attention_layers.#"
_SELF = "predictor.transformer_self_attention_layers.#"
_FFN = "predictor.transformer_ffn_layers.#"
_DECODER = "transformer_decoder.layers.#"
# The same for what follows `decode_head.`.
HEAD = (
    ("pixel_decoder.input_convs.#.0.", "pixel_decoder.input_convs.#.conv."),
    ("pixel_decoder.input_convs.#.1.", "pixel_decoder.input_convs.#.gn."),
    ("pixel_decoder.encoder.level_encoding", "pixel_decoder.level_encoding.weight"),
    (f"{_ENCODER[0]}.self_attn.", f"{_ENCODER[1]}.attentions.0."),
    (f"{_ENCODER[0]}.norm1.", f"{_ENCODER[1]}.norms.0."),
    (f"{_ENCODER[0]}.norm2.", f"{_ENCODER[1]}.norms.1."),
    (f"{_ENCODER[0]}.linear1.", f"{_ENCODER[1]}.ffns.0.layers.0.0."),
    (f"{_ENCODER[0]}.linear2.", f"{_ENCODER[1]}.ffns.0.layers.1."),
    ("pixel_decoder.lateral_convs.#.norm.", "pixel_decoder.lateral_convs.#.gn."),
    ("pixel_decoder.lateral_convs.#.", "pixel_decoder.lateral_convs.#.conv."),
    ("pixel_decoder.output_convs.#.norm.", "pixel_decoder.output_convs.#.gn."),
    ("pixel_decoder.output_convs.#.", "pixel_decoder.output_convs.#.conv."),
    (f"{_CROSS}.multihead_attn.", f"{_DECODER}.attentions.0.attn."),
    (f"{_CROSS}.norm.", f"{_DECODER}.norms.0."),
    (f"{_SELF}.self_attn.", f"{_DECODER}.attentions.1.attn."),
    (f"{_SELF}.norm.", f"{_DECODER}.norms.1."),
    (f"{_FFN}.linear1.", f"{_DECODER}.ffns.0.layers.0.0."),
    (f"{_FFN}.linear2.", f"{_DECODER}.ffns.0.layers.1."),
    (f"{_FFN}.norm.", f"{_DECODER}.norms.2."),
    ("predictor.post_norm.", "transformer_decoder.post_norm."),
    ("predictor.class_embed.", "cls_embed."),
    ("predictor.mask_embed.layers.0.", "mask_embed.0."),
    ("predictor.mask_embed.layers.1.", "mask_embed.2."),
    ("predictor.mask_embed.layers.2.", "mask_embed.4."),
    ("predictor.query_", "query_"),
    ("predictor.level_embed.", "level_embed."),
    ("batchnorm_layer.", "bn."),
    ("conv.", "conv_seg."),
)
# The names of the backbone's tensors in transformers, and in the original.
TRANSFORMERS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "storage_tokens"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ("layer.#.attention.q_proj.", "blocks.#.attn.qkv.0."),
    ("layer.#.attention.k_proj.", "blocks.#.attn.qkv.1."),
    ("layer.#.attention.v_proj.", "blocks.#.attn.qkv.2."),
    ("layer.#.attention.o_proj.", "blocks.#.attn.proj."),
    ("layer.#.layer_scale1.lambda1", "blocks.#.ls1.gamma"),
    ("layer.#.layer_scale2.lambda1", "blocks.#.ls2.gamma"),
    ("layer.#.mlp.gate_proj.", "blocks.#.mlp.w1."),
    ("layer.#.mlp.up_proj.", "blocks.#.mlp.w2."),
    ("layer.#.mlp.down_proj.", "blocks.#.mlp.w3."),
    ("layer.#.", "blocks.#."),
)
WITHOUT_GATE = {"mlp.w2.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}
# The same for timm.
TIMM = (
    ("reg_token", "storage_tokens"),
    ("blocks.#.attn.q_bias", "blocks.#.attn.qkv.0.bias"),
    ("blocks.#.attn.v_bias", "blocks.#.attn.qkv.2.bias"),
    ("blocks.#.gamma_1", "blocks.#.ls1.gamma"),
    ("blocks.#.gamma_2", "blocks.#.ls2.gamma"),
    ("blocks.#.mlp.fc1_g.", "blocks.#.mlp.w1."),
    ("blocks.#.mlp.fc1_x.", "blocks.#.mlp.w2."),
)
GATED_TIMM = (("blocks.#.mlp.fc2.", "blocks.#.mlp.w3."),)
# What is split into queries (0), keys (1) and values (2).
SPLIT = re.compile(r"(.*\.qkv)\.([012])\.(weight|bias)")
MASK = ".bias_mask"  # of the bias of queries, keys and values: 1, 0 and 1


_BACKWARD = [(new, old) for old, new in HEAD]


def renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    """Returns a name with its beginning replaced by the first row of a table that matches.

    >>> renamed("layer.3.norm1.weight", [("layer.#.", "blocks.#.")])
    'blocks.3.norm1.weight'

    Args:
      name: the name of a tensor.
      table: pairs of beginnings, in which `#` stands for a number.
    """
    for old, new in table:
        pattern = r"(\d+)".join(map(re.escape, old.split("#")))
        if match := re.match(pattern, name):
            number = match[1] if match.groups() else ""
            return new.replace("#", number) + name[match.end() :]
    return name


def common_names(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns tensors of DINOv3 by the names that files of mmsegmentation would give them.

    Tensors of other models keep their names.

    Args:
      tensors: a backbone in one of the three namings, or a segmentor or its head of the original.

    Returns:
      The tensors, and the name of each in `tensors`. Of joined ones, that is the first.

    Raises:
      CheckpointError: if the mask of a bias has other values than the model's.
    """
    names = {name: name for name in tensors}
    if any(name.startswith("segmentation_model.") for name in tensors):
        names = {name: rename(name) for name in tensors}
    elif "embeddings.register_tokens" in tensors:
        gated = any(".mlp.gate_proj." in name for name in tensors)
        names = {name: renamed(name, TRANSFORMERS) for name in tensors}
        if not gated:
            names = {name: _without_gate(new) for name, new in names.items()}
    elif "reg_token" in tensors:
        gated = any(".mlp.fc1_g." in name for name in tensors)
        names = {name: renamed(name, TIMM + GATED_TIMM * gated) for name in tensors}
    found, sources, parts = {}, {}, {}
    for name, new in names.items():
        split = SPLIT.fullmatch(new)
        new = f"{split[1]}.{split[3]}" if split else new
        sources.setdefault(new, name)
        if split:
            parts.setdefault(new, {})[int(split[2])] = tensors[name]
        else:
            found[new] = tensors[name]
        if new.endswith(MASK):
            _check_mask(name, tensors[name])
    return found | {name: _joined(given) for name, given in parts.items()}, sources


def rename(name: str) -> str:
    """Returns the name of a tensor of the original's segmentor as mmsegmentation would have it.

    >>> rename("segmentation_model.1.predictor.class_embed.bias")
    'decode_head.cls_embed.bias'
    """
    name = renamed(name, PARTS)
    part, _, rest = name.partition(".")
    return f"{part}.{renamed(rest, HEAD)}" if part == "decode_head" else name


def _without_gate(name):
    for gated, plain in WITHOUT_GATE.items():
        name = name.replace(gated, plain)
    return name


def _joined(given):
    """Joins what belongs to queries, keys and values; what is missing is zero."""
    like = next(iter(given.values()))
    return np.concatenate([given.get(i, np.zeros_like(like)) for i in range(3)])


def _check_mask(name, mask):
    """Checks that a mask lets biases of queries and values count and those of keys not."""
    values = np.asarray(mask, np.float32).reshape(3, -1)
    if not (
        np.isnan(values).all() or np.array_equal(values, _mask(values.shape[1]).reshape(3, -1))
    ):
        raise CheckpointError(
            f"{name}: the mask of the bias is to be 1 for queries and values and 0 for keys, or not"
            f" set (NaN); it has the values {np.unique(values)[:4].tolist()}"
        )


def _mask(channels):
    return np.repeat(np.array([1, 0, 1], np.float32), channels)


def original_name(name: str, adapted: bool) -> str:
    """Returns the original's name of a tensor of a segmentor, the inverse of `rename`.

    Args:
      name: the name of the tensor as in mmsegmentation.
      adapted: whether the segmentor has an adapter.
    """
    part, _, rest = name.partition(".")
    if part == "decode_head":
        return f"segmentation_model.1.{renamed(rest, _BACKWARD)}"
    if not adapted:
        return f"segmentation_model.0.feature_model.{rest}"
    if re.match(r"(spm|interactions|level_embed|up|norm[1-4])\b", rest):
        return f"segmentation_model.0.{rest}"
    return f"segmentation_model.0.backbone.{rest}"


def original_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a segmentor by the original's names, with the buffers it also loads.

    Args:
      tensors: a whole segmentor of DINOv3, by the names of `common_names`.
    """
    adapted = any(name.startswith("backbone.spm.") for name in tensors)
    found = {original_name(name, adapted): tensor for name, tensor in tensors.items()}
    for name, tensor in list(found.items()):
        if name.endswith(".qkv.bias"):
            found[f"{name}_mask"] = _mask(len(tensor) // 3)
        if name.endswith(".cls_token"):
            unused = name.replace("cls_token", "mask_token")
            found[unused] = np.zeros((1, tensor.shape[-1]), np.float32)
    return found
