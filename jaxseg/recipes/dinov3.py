"""Holds DINOv3's transformers with an adapter and Mask2Former, or with a linear head.

The settings are those of the published segmentors (arXiv:2508.10104). The transformer is frozen.
"""

from typing import Any

MLP = {"ffn": "mlp", "ffn_ratio": 4.0, "use_bias": True}
SWIGLU = {"ffn": "swiglu", "ffn_ratio": 6.0, "use_bias": True}
SWIGLU64 = {"ffn": "swiglu64", "ffn_ratio": 3.0, "use_bias": False}
BACKBONES = {
    "vits16": {"embed_dim": 384, "depth": 12, "num_heads": 6, **MLP},
    "vits16plus": {"embed_dim": 384, "depth": 12, "num_heads": 6, **SWIGLU},
    "vitb16": {"embed_dim": 768, "depth": 12, "num_heads": 12, **MLP},
    "vitl16": {"embed_dim": 1024, "depth": 24, "num_heads": 16, **MLP},
    "vitl16plus": {"embed_dim": 1024, "depth": 24, "num_heads": 16, **SWIGLU},
    "vith16plus": {"embed_dim": 1280, "depth": 32, "num_heads": 20, **SWIGLU},
    "vit7b16": {"embed_dim": 4096, "depth": 40, "num_heads": 32, **SWIGLU64},
}
# The blocks after which an adapter reads, by depth; that of 24 blocks is not as regular.
READ_AFTER = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 32: (7, 15, 23, 31), 40: (9, 19, 29, 39)}
SHARED = {"storage_tokens": 4, "remat": False, "remat_keeps": "kernels"}
ADAPTER = {
    "deform_num_heads": 16,
    "deform_ratio": 0.5,
    "num_points": 4,
    "conv_inplane": 64,
    "conv_ffn_ratio": 0.25,
    "extra_extractors": 2,
    "add_vit_feature": True,
    "drop_path": 0.3,
}
HEAD = {
    "channels": 2048,
    "num_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "full_size_masks": True,
    "score_dtype": "float32",  # bfloat16: as in the published evaluation
    "remat": True,
}
TRANSFORMER = r"backbone/(patch_embed|cls_token|storage_tokens|rope_embed|blocks_\d+|norm)\b"
EVERYTHING_DECAYS = (("", 1.0, 1.0),)


def adapter(name: str) -> dict[str, Any]:
    """Returns the settings of one of `BACKBONES` with an adapter."""
    backbone = BACKBONES[name]
    reads = {"interaction_indexes": READ_AFTER[backbone["depth"]]}
    return {"kind": "dinov3_adapter", **backbone, **SHARED, **reads, **ADAPTER}


def transformer(name: str) -> dict[str, Any]:
    """Returns the settings of one of `BACKBONES` alone, with the features of its last block."""
    backbone = BACKBONES[name]
    last = backbone["depth"] - 1
    return {"kind": "dinov3", **backbone, **SHARED, "out_indices": (last,)}
