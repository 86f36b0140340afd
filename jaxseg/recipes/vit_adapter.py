"""Holds ViT-Adapter on its plain transformers, BEiT without an adapter, and their shared settings.

A transformer is named after its pre-training: DeiT (ImageNet), AugReg, BEiT and BEiTv2
(ImageNet-22k), Uni-Perceiver (images and text).
"""

from typing import Any

from jaxseg.recipes import base

ADAPTER = {
    "mlp_ratio": 4.0,
    "conv_inplane": 64,
    "num_points": 4,
    "ffn_ratio": 0.25,
    "initial_gamma": 0.0,
    "extra_extractors": 2,
    "add_vit_feature": True,
    "remat": False,
    "remat_keeps": "kernels",  # or "nothing", "matmuls", "matmuls_on_host"
}
VIT = {"kind": "vit_adapter", **ADAPTER, "pretrain_grid": 14}
UNIPERCEIVER = {**VIT, "kind": "uniperceiver_adapter"}
BEIT = {"kind": "beit_adapter", **ADAPTER, "initial_gamma": 1e-6, "layer_scale": 1e-6}
SIZES = {
    "t": {
        "embed_dim": 192,
        "depth": 12,
        "num_heads": 3,
        "interaction_indexes": ((0, 2), (3, 5), (6, 8), (9, 11)),
        "deform_num_heads": 6,
        "deform_ratio": 1.0,
    },
    "s": {
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "interaction_indexes": ((0, 2), (3, 5), (6, 8), (9, 11)),
        "deform_num_heads": 6,
        "deform_ratio": 1.0,
    },
    "b": {
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "interaction_indexes": ((0, 2), (3, 5), (6, 8), (9, 11)),
        "deform_num_heads": 12,
        "deform_ratio": 0.5,
    },
    "l": {
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "interaction_indexes": ((0, 5), (6, 11), (12, 17), (18, 23)),
        "deform_num_heads": 16,
        "deform_ratio": 0.5,
        "remat": True,
    },
}
# One interaction for all blocks, without the most expensive parts of the adapter.
LIGHT = {
    "interaction_indexes": ((0, 11),),
    "ffn_ratio": None,
    "extra_extractors": 0,
    "add_vit_feature": False,
}
BACKBONES = {
    "deit_adapter_t": {**VIT, **SIZES["t"], "drop_path": 0.1},
    "deit_adapter_s": {**VIT, **SIZES["s"], "drop_path": 0.2},
    "deit_adapter_b": {**VIT, **SIZES["b"], "drop_path": 0.3},
    "deit_adapter_light_b": {**VIT, **SIZES["b"], **LIGHT, "drop_path": 0.3},
    "augreg_adapter_t": {**VIT, **SIZES["t"], "drop_path": 0.1},
    "augreg_adapter_b": {**VIT, **SIZES["b"], "pretrain_grid": 24, "drop_path": 0.3},
    "augreg_adapter_l": {**VIT, **SIZES["l"], "pretrain_grid": 24, "drop_path": 0.4},
    "uniperceiver_adapter_l": {**UNIPERCEIVER, **SIZES["l"], "drop_path": 0.4},
    "beit_adapter_b": {**BEIT, **SIZES["b"], "drop_path": 0.2},
    "beit_adapter_l": {**BEIT, **SIZES["l"], "drop_path": 0.3},
    "beitv2_adapter_l": {**BEIT, **SIZES["l"], "drop_path": 0.3},
    "beit_l": {
        "kind": "beit",
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "mlp_ratio": 4.0,
        "out_indices": (7, 11, 15, 23),
        "layer_scale": 1e-6,
        "drop_path": 0.2,
        "remat": True,
        "remat_keeps": "kernels",
    },
}
# The optimizer settings of each backbone, and the weights it starts from.
OPTIM = {
    "deit_adapter_t": {"lr": 1.2e-4, "layer_decay": 0.95, "weight_decay": 0.01},
    "deit_adapter_s": {"lr": 6e-5, "layer_decay": 0.95, "weight_decay": 0.01},
    "deit_adapter_b": {"lr": 6e-5, "layer_decay": 0.95, "weight_decay": 0.01},
    "deit_adapter_light_b": {"lr": 6e-5, "layer_decay": 0.95, "weight_decay": 0.01},
    "augreg_adapter_t": {"lr": 1.2e-4, "layer_decay": 0.95, "weight_decay": 0.01},
    "augreg_adapter_b": {
        "lr": 2e-5,
        "weight_decay": 0.01,
        "custom_keys": (
            ("level_embed", 1.0, 0.0),
            ("pos_embed", 1.0, 0.0),
            ("norm", 1.0, 0.0),
            ("bias", 1.0, 0.0),
            ("head", 10.0, 1.0),
        ),
    },
    "augreg_adapter_l": {"lr": 2e-5, "layer_decay": 0.95, "weight_decay": 0.05},
    "uniperceiver_adapter_l": {"lr": 6e-5, "layer_decay": 0.8, "weight_decay": 0.05},
    "beit_adapter_b": {"lr": 3e-5, "layer_decay": 0.95, "weight_decay": 0.05},
    "beit_adapter_l": {"lr": 2e-5, "layer_decay": 0.9, "weight_decay": 0.05},
    "beitv2_adapter_l": {"lr": 2e-5, "layer_decay": 0.9, "weight_decay": 0.05},
    "beit_l": {"lr": 2e-5, "layer_decay": 0.9, "weight_decay": 0.05},
}
INIT = {
    "deit_adapter_t": "zoo:deit_tiny_patch16_224",
    "deit_adapter_s": "zoo:deit_small_patch16_224",
    "deit_adapter_b": "zoo:deit_base_patch16_224",
    "deit_adapter_light_b": "zoo:deit_base_patch16_224",
    "augreg_adapter_t": "zoo:augreg_tiny_patch16_224",
    "augreg_adapter_b": "zoo:augreg_base_patch16_384",
    "augreg_adapter_l": "zoo:augreg_large_patch16_384",
    "uniperceiver_adapter_l": "zoo:uniperceiver_large_patch16_224",
    "beit_adapter_b": "zoo:beit_base_patch16_224_pt22k_ft22k",
    "beit_adapter_l": "zoo:beit_large_patch16_224_pt22k_ft22k",
    "beitv2_adapter_l": "zoo:beitv2_large_patch16_224_pt1k_ft21k",
    "beit_l": "zoo:beit_large_patch16_224_pt22k_ft22k",
}
# AugReg-B and AugReg-L take images scaled to -1..1, as in their pre-training. AugReg-T has the mean
# and std of the other backbones.
TO_ONE = {"mean": (127.5, 127.5, 127.5), "std": (127.5, 127.5, 127.5)}
NORMALIZATION = {"augreg_adapter_b": TO_ONE, "augreg_adapter_l": TO_ONE}


def at_sides(sides: tuple[int, ...], pad: str) -> dict[str, Any]:
    """Returns the multi-scale evaluation settings of published runs with 896-pixel crops.

    They are for the runs that do not use SETR_Resize. Images are resized to the given shorter sides
    and padded to a full window.

    Args:
      sides: the shorter sides of the images in pixels.
      pad: the value of the setting "pad" (`base.SINGLE_SCALE`).
    """
    return {"ratios": tuple(side / 896 for side in sides), "resize": "within", "pad": pad}


def upernet(
    name: str, num_classes: int, data: dict[str, Any], steps: int = 160_000
) -> dict[str, Any]:
    """Returns UPerNet on one of `BACKBONES` with the settings of its published runs.

    Args:
      name: a key of `BACKBONES`.
      num_classes: the number of outputs.
      data: the data settings, with square crops.
      steps: the number of training steps.
    """
    channels = 1024 if name.startswith("beit") else 512
    model = base.upernet(_backbone(name, data), num_classes, channels)
    return _published(name, model, data, steps)


def mask2former(
    name: str,
    num_classes: int,
    data: dict[str, Any],
    steps: int,
    num_queries: int = 100,
    size: dict[str, int] = base.WIDE,
) -> dict[str, Any]:
    """Returns Mask2Former on one of `BACKBONES` with the settings of its published runs.

    Args:
      name: a key of `BACKBONES`.
      num_classes: the number of classes.
      data: the data settings, with square crops.
      steps: the number of training steps.
      num_queries: the number of queries.
      size: `base.NARROW` or `base.WIDE`.
    """
    model = base.mask2former(_backbone(name, data), num_classes, num_queries, size)
    return _published(name, model, data, steps)


def _backbone(name, data):
    """Returns the settings of a backbone, with BEiT's position tables sized for the crops."""
    backbone = BACKBONES[name]
    if not backbone["kind"].startswith("beit"):
        return backbone
    return {**backbone, "window": tuple(side // 16 for side in data["crop_hw"])}


def _published(name, model, data, steps):
    """Returns the shared settings: ten evaluations per run, in windows of the size of the crops.

    BEiT's position tables need whole windows. Its multi-scale evaluation therefore makes no image
    smaller than a window.
    """
    crop = data["crop_hw"][0]
    stride = 512 if crop == 896 else 2 * crop // 3
    return {
        "steps": steps,
        "model": model,
        "data": data | NORMALIZATION.get(name, {}),
        "optim": OPTIM[name],
        "eval": {
            "every_steps": steps // 10,
            "mode": "slide",
            "crop_hw": (crop, crop),
            "stride_hw": (stride, stride),
            "ms": {"resize": "short_side"} if name.startswith("beit") else {},
        },
        "init": INIT[name],
    }
