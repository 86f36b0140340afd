"""Which parameters learn at which rate and which of them decay, by rules over paths.

The originals sort parameters into dozens of optimizer groups by name; each family numbers its
layers in its own way. The learning rate of layer k is decay ** (last layer - k) of the base rate.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxseg.errors import ConfigError


class Group(NamedTuple):
    """What multiplies the learning rate and the weight decay of a parameter."""

    learning_rate: float
    weight_decay: float


# (pattern, layer): the first that matches the beginning of a path counts; the last rule has the
# last layer. Heads are the last layer, but for what Mask2Former starts from and predicts with: the
# originals give these the smallest rate.
LayerRules = Sequence[tuple[str, int]]
QUERIES = ("decode_head/(query_embed|query_feat|level_embed|cls_embed|mask_embed)", 0)


def internimage_layers(backbone: ConfigDict) -> LayerRules:
    """The layers of InternImage: the stem is 0, blocks count on from 1.

    A stage's closing norm and its downsampling belong with the first block of the *next* stage; the
    last stage's norm with the first block of its own. The norms on the trunk of InternImage-H
    (`post_norms_k`) are taken for block k of their stage.
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
    """The layers of plain transformers, with an adapter or without: embeddings are 0, blocks count
    on from 1, and all else, the adapter too, is the last layer.

    Uni-Perceiver calls its blocks `layers` and its embeddings `visual_embed`.
    """
    blocks = [(f"backbone/(blocks|layers)_{k}/", k + 1) for k in range(backbone.depth)]
    return [
        ("backbone/(cls_token|pos_embed|patch_embed|visual_embed)", 0),
        QUERIES,
        *blocks,
        ("(backbone|decode_head|auxiliary_head)/", backbone.depth + 1),
    ]


# By the kind of backbone: its layers, and a pattern of what does not decay besides vectors. What
# the original of ViT-Adapter means to exempt (position tables, class token) it names wrongly.
VIT = (vit_layers, None)
FAMILIES = {
    "internimage": (internimage_layers, "norm|relative_position|sampling_offsets"),
    "vit_adapter": VIT,
    "beit_adapter": VIT,
    "beit": VIT,
    "uniperceiver_adapter": VIT,
}


def make_group_fn(config: ConfigDict, backbone: ConfigDict) -> Callable[[str, int], Group]:
    """The function (path, number of dimensions) -> group that `config.optim` describes.

    Raises:
      ConfigError: for rates both by layer and by name.
    """
    if not config.custom_keys:
        layers, no_decay = FAMILIES[backbone.kind]
        rules = layers(backbone)
        return lambda path, ndim: Group(
            learning_rate_scale(path, rules, config.layer_decay),
            float(decays(path, ndim, no_decay)),
        )
    if config.layer_decay != 1:
        raise ConfigError("optim: layer_decay has no effect beside custom_keys; set it to 1")
    rows = sorted(config.custom_keys, key=lambda row: (-len(row[0]), row[0]))
    return lambda path, ndim: group_by_name(path, rows)


def learning_rate_scale(path: str, rules: LayerRules, decay: float) -> float:
    """decay ** (layers above this parameter's).

    Raises:
      ValueError: for a parameter that no rule covers.
    """
    for pattern, layer in rules:
        if re.match(pattern, path):
            return decay ** (rules[-1][1] - layer)
    raise ValueError(f"optim: no layer rule covers parameter {path}")


def decays(path: str, ndim: int, no_decay: str | None) -> bool:
    """Whether weight decay applies: not to vectors, nor where the pattern is found.

    A bias is a vector in the original, whatever its shape is here.
    """
    if ndim < 2 or path.endswith("bias"):
        return False
    return not (no_decay and re.search(no_decay, path))


def group_by_name(path: str, rows: Sequence[tuple[str, float, float]]) -> Group:
    """The group of the first row (part of a path, rate, decay) that is found; else of neither."""
    return next((Group(rate, decay) for part, rate, decay in rows if part in path), Group(1.0, 1.0))
