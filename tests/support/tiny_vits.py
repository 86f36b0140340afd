"""Small models of the ViT-Adapter family, and the tensors of files for them."""

import functools
import json
import re

import numpy as np
from ml_collections import ConfigDict

from converters import rules, torch_weights
from converters.fill import fill
from jaxseg import parameter_paths
from jaxseg.models.segmentation_model import build_model, variable_shapes
from support.tiny import tiny_config

NO_ADAPTER = "the adapter, which the pre-training did not have"
NO_HEADS = {"there is no decode_head", "there is no auxiliary_head"}
ADDED = re.compile(r"/backbone/(spm|interactions_\d|level_embed|up|norm[1-4])(/|$)")

SIZE = {
    "embed_dim": 12,
    "depth": 4,
    "num_heads": 3,
    "interaction_indexes": ((0, 0), (1, 1), (2, 2), (3, 3)),
    "deform_num_heads": 3,
    "conv_inplane": 4,
}
VIT = {"kind": "vit_adapter", **SIZE, "pretrain_grid": 4}
UNIPERCEIVER = {**VIT, "kind": "uniperceiver_adapter"}
BEIT_ADAPTER = {"kind": "beit_adapter", **SIZE, "window": (8, 8)}
BEIT = {
    "kind": "beit",
    "embed_dim": 12,
    "depth": 4,
    "num_heads": 3,
    "out_indices": (0, 1, 2, 3),
    "window": (8, 8),
}


def config_of(backbone, **changes):
    config = tiny_config()
    config.model.backbone = ConfigDict(backbone | changes)
    return config


@functools.cache
def shapes_of(described):
    """Shapes of the variables of a model, by path."""
    return parameter_paths.shapes(variable_shapes(build_model(json.loads(described))))


def wanted_by(model):
    return shapes_of(json.dumps(model, sort_keys=True))


def match(tensors, config, **options):
    names = {"source": "file.pth", "model": "tiny"}
    return torch_weights.match(tensors, wanted_by(config.model.to_dict()), **names, **options)


def filled(shapes):
    return {name: fill(name, shape) for name, shape in shapes.items()}


def segmentor_of(backbone):
    """The state dict of the original."""
    wanted = wanted_by(config_of(backbone).model.to_dict())
    return filled({rules.to_name(p): rules.channels_first_shape(s, p) for p, s in wanted.items()})


def pretrained_of(backbone):
    """A file of the backbone alone, as it was before the segmentor added its parts."""
    tensors = {}
    for name, tensor in segmentor_of(backbone).items():
        path = rules.to_path(name, tensor.ndim)
        if name.startswith("backbone.") and not ADDED.search(path) and "fpn" not in path:
            tensors[name.removeprefix("backbone.")] = tensor
    return tensors


def deit():
    """As DeiT and AugReg publish theirs: with a class token, a last norm and a classifier."""
    rest = {"cls_token": (1, 1, 12), "norm.weight": (12,), "norm.bias": (12,)}
    rest |= {"head.weight": (10, 12), "head.bias": (10,)}
    tensors = {n: t for n, t in pretrained_of(VIT).items() if not n.endswith(("gamma1", "gamma2"))}
    return tensors | filled(rest)


def beit(side=6):
    """As BEiT publishes its fine-tuned models, for a window of that many patches a side."""
    rest = {"fc_norm.weight": (12,), "fc_norm.bias": (12,)}
    rest |= {"head.weight": (10, 12), "head.bias": (10,)}
    tensors = pretrained_of({**BEIT, "window": (side, side)})
    indexes = {
        name.replace("bias_table", "index"): np.zeros((1 + side**2,) * 2, np.int64)
        for name in tensors
        if name.endswith("bias_table")
    }
    return tensors | indexes | filled(rest)


def shared_table(table):
    """A BEiT that keeps one table for all blocks, and its mask token, as before fine-tuning."""
    tensors = {n: t for n, t in beit().items() if "relative_position" not in n}
    tensors = {n: t for n, t in tensors.items() if not n.startswith(("fc_norm", "head"))}
    rest = {"mask_token": (1, 1, 12), "norm.weight": (12,), "norm.bias": (12,)}
    rest |= {"lm_head.weight": (20, 12), "lm_head.bias": (20,)}
    index = {"rel_pos_bias.relative_position_index": np.zeros((37, 37), np.int64)}
    return tensors | filled(rest) | index | {"rel_pos_bias.relative_position_bias_table": table}
