"""Holds DINOv3's transformers with an adapter and Mask2Former, or with a linear head.

The settings are those of the published segmentors (arXiv:2508.10104). The transformer is frozen.
"""

from typing import Any

from jaxseg.recipes import base

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
# Those that segmentors were recorded of; of vitl16plus, none is known.
SEGMENTORS = tuple(name for name in BACKBONES if name != "vitl16plus")
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
EVERYTHING_DECAYS = (("", 1.0, 1.0),)  # a row of `optim.custom_keys` that is for all parameters
WEIGHTS = {name: f"zoo:dinov3_{name}_lvd1689m" for name in BACKBONES}


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


def mask2former(
    name: str,
    num_classes: int,
    data: dict[str, Any],
    *,
    lr: float,
    steps: int,
    warmup_steps: int,
    head: dict[str, Any] = HEAD,
) -> dict[str, Any]:
    """Returns Mask2Former on one of `BACKBONES` with an adapter.

    The paper gives the rate, the steps and the evaluation. The decay of weights is that of
    ViT-Adapter, for the paper does not say.

    Args:
      name: a key of `BACKBONES`.
      num_classes: the number of classes.
      data: the data settings, with crops of 896.
      lr: the peak learning rate for 16 images.
      steps: the number of training steps.
      warmup_steps: the number of steps of linear warm-up.
      head: the settings of the head.
    """
    optim = {"lr": lr, "warmup_steps": warmup_steps, "weight_decay": 0.05}
    model = base.mask2former(adapter(name), num_classes, 100, head)
    return {
        "steps": steps,
        "model": model,
        "data": data,
        "optim": {**optim, "schedule": "dinov3", "freeze": TRANSFORMER},
        "eval": {**evaluation(896, 596), "every_steps": steps // 10},
        "init": WEIGHTS[name],
    }


def linear(name: str, num_classes: int, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the linear head on one of `BACKBONES`, with the settings of its published training.

    Args:
      name: a key of `BACKBONES`.
      num_classes: the number of outputs.
      data: the data settings, with crops of 512.
    """
    return linear_on(
        transformer(name),
        num_classes,
        data,
        eval_settings=evaluation(512, 341),
        weights=WEIGHTS[name],
    )


def linear_on(
    backbone: dict[str, Any],
    num_classes: int,
    data: dict[str, Any],
    *,
    eval_settings: dict[str, Any],
    weights: str,
) -> dict[str, Any]:
    """Returns a linear head on a frozen backbone, with the published settings of training.

    Args:
      backbone: the settings of the backbone, which has one feature map.
      num_classes: the number of outputs.
      data: the data settings.
      eval_settings: the settings of the evaluation.
      weights: the weights that training starts from.
    """
    model = base.linear(backbone, num_classes)
    model["decode_head"]["in_index"] = (0,)
    return {
        "steps": 40_000,
        "model": model,
        "data": {**data, "augmentation": "dinov3"},
        "optim": {
            "lr": 1e-3,
            "weight_decay": 1e-3,
            "custom_keys": EVERYTHING_DECAYS,
            "schedule": "dinov3",
            "freeze": "backbone/",
        },
        "eval": {**eval_settings, "every_steps": 5_000},
        "init": weights,
    }


def evaluation(crop: int, stride: int) -> dict[str, Any]:
    """Returns the evaluation of the published scores: windows over one view, or over ten."""
    return {
        "mode": "slide",
        "crop_hw": (crop, crop),
        "stride_hw": (stride, stride),
        "ss": {"resize": "dinov3"},
        "ms": {"resize": "dinov3", "ratios": (0.9, 0.95, 1.0, 1.05, 1.1)},
    }
