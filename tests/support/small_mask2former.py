"""A Mask2Former that compiles in seconds."""

import functools

from jaxseg.recipes import base
from support.tiny import tiny_config

HEAD = {
    "channels": 16,
    "num_heads": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_ffn_dim": 24,
    "norm_groups": 4,
}


@functools.cache
def mask2former_config():
    config = tiny_config(**{"loss.mask2former.num_points": 48, "loss.mask2former.max_targets": 6})
    config.model = base.mask2former(
        config.model.backbone.to_dict(), num_classes=19, num_queries=8, size=HEAD
    )
    config.model.dtype = "float32"
    return config
