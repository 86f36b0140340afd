"""Sets the learning rate and weight decay of each parameter by rules over its path.

The reference repositories sort parameters into dozens of optimizer groups by name. Each model
family numbers its layers in its own way. The learning rate of layer k is the base rate times
decay ** (last layer - k).
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxseg.errors import ConfigError


class Group(NamedTuple):
    """Holds the factors of a parameter's learning rate and weight decay.

    Attributes:
      learning_rate: factor of the base learning rate.
      weight_decay: factor of the weight decay.
    """

    learning_rate: float
    weight_decay: float


# Pairs (pattern, layer). The first pattern that matches the beginning of a path wins. The last rule
# holds the last layer. Heads belong to the last layer, except for Mask2Former's queries, embeddings
# and prediction layers: the reference gives these the smallest rate.
LayerRules = Sequence[tuple[str, int]]
QUERIES = ("decode_head/(query_embed|query_feat|level_embed|cls_embed|mask_embed)", 0)


def internimage_layers(backbone: ConfigDict) -> LayerRules:
    """Numbers the layers of InternImage: the stem is layer 0 and blocks count from 1.

    The closing norm and the downsampling of a stage belong to the first block of the *next* stage.
    The norm of the last stage belongs to the first block of that stage. The norms on the trunk of
    InternImage-H (`post_norms_k`) belong to block k of their stage.
    """
    depths = backbone.depths
    rules = [("backbone/patch_embed/", 0), QUERIES]
    for stage, depth in enumerate(depths):
        first = 1 + sum(depths[:stage])
        for block in range(depth):
            name = f"backbone/levels_{stage}/(blocks|post_norms)_{block}/"
            rules.append((name, first + block))
        last_stage = stage == len(depths) - 1
        closing = first if last_stage else first + depth
        rules.append((f"backbone/levels_{stage}/(norm|downsample)/", closing))
    rules.append(("(decode|auxiliary)_head/", sum(depths) + 1))
    return rules


def vit_layers(backbone: ConfigDict) -> LayerRules:
    """Numbers the layers of plain transformers, with or without an adapter.

    Embeddings are layer 0 and blocks count from 1. Everything else, including the adapter, belongs
    to the last layer. Uni-Perceiver names its blocks `layers` and its embeddings `visual_embed`.
    """
    blocks = [(f"backbone/(blocks|layers)_{k}/", k + 1) for k in range(backbone.depth)]
    return [
        (
            "backbone/(cls_token|storage_tokens|register_tokens|pos_embed|patch_embed|visual_embed)",
            0,
        ),
        QUERIES,
        *blocks,
        ("(backbone|decode_head|auxiliary_head)/", backbone.depth + 1),
    ]


# Per kind of backbone: its layer rules, and a pattern of parameters that do not decay in addition
# to vectors. The reference of ViT-Adapter means to exempt position tables and the class token, but
# names them wrongly, so they decay there and here.
VIT = (vit_layers, None)
FAMILIES = {
    "internimage": (internimage_layers, "norm|relative_position|sampling_offsets"),
    "vit_adapter": VIT,
    "beit_adapter": VIT,
    "beit": VIT,
    "uniperceiver_adapter": VIT,
    "dinov2": VIT,
    "dinov3": VIT,
    "dinov3_adapter": VIT,
}


def make_group_fn(config: ConfigDict, backbone: ConfigDict) -> Callable[[str, int], Group]:
    """Returns the function (path, number of dimensions) -> `Group` that `config.optim` describes.

    Args:
      config: `config.optim`. If `custom_keys` is set, groups go by name, otherwise by layer.
      backbone: `config.model.backbone`, whose kind decides the layer rules.

    Raises:
      ConfigError: if rates are set both by layer and by name.
    """
    if not config.custom_keys:
        layers, no_decay = FAMILIES[backbone.kind]
        rules = layers(backbone)
        return lambda path, ndim: Group(
            learning_rate_scale(path, rules, config.layer_decay),
            float(decays(path, ndim, no_decay)),
        )
    if config.layer_decay != 1:
        raise ConfigError("optim: layer_decay has no effect with custom_keys; set it to 1")
    rows = sorted(config.custom_keys, key=lambda row: (-len(row[0]), row[0]))
    return lambda path, ndim: group_by_name(path, rows)


def learning_rate_scale(path: str, rules: LayerRules, decay: float) -> float:
    """Returns decay ** (number of layers above the parameter's layer).

    >>> rules = [(r"params/backbone/blocks_0/", 1), (r"params/backbone/blocks_1/", 2), (r".*", 3)]
    >>> learning_rate_scale("params/backbone/blocks_0/attn/proj/kernel", rules, decay=0.5)
    0.25

    Raises:
      ValueError: if no rule covers the parameter.
    """
    for pattern, layer in rules:
        if re.match(pattern, path):
            return decay ** (rules[-1][1] - layer)
    raise ValueError(f"optim: no layer rule covers parameter {path}")


def decays(path: str, ndim: int, no_decay: str | None) -> bool:
    """Returns whether weight decay applies to a parameter.

    It does not apply to vectors, nor to paths in which the pattern `no_decay` is found. A bias
    counts as a vector whatever its shape is here, because it is one in the reference.
    """
    if ndim < 2 or path.endswith("bias"):
        return False
    return not (no_decay and re.search(no_decay, path))


def group_by_name(path: str, rows: Sequence[tuple[str, float, float]]) -> Group:
    """Returns the group of the first row whose part of a path occurs in `path`.

    If no row applies, both factors are 1.

    Args:
      path: the path of a parameter.
      rows: tuples (part of a path, factor of the rate, factor of the decay).
    """
    return next((Group(rate, decay) for part, rate, decay in rows if part in path), Group(1.0, 1.0))
