"""What every recipe starts from, and the heads they share; backbones have a file per family."""

import copy
from collections.abc import Mapping
from typing import Any

import ml_collections

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)

# The views of an image in evaluation, whose probabilities are averaged.
SINGLE_SCALE = {
    "ratios": (1.0,),  # of test_scale_wh
    "flip": False,  # mirror images too
    # "within" test_scale_wh, and then up to test_multiple; or "short_side", as SETR_Resize: the
    # shorter side that of test_scale_wh, but not below crop_hw, whatever the longer one
    "resize": "within",
    # to crop_hw where an image is smaller: "before_normalize" with black, "after_normalize" with
    # the mean
    "pad": "none",
    # True cuts the scores of padding off before the last resize, as mmsegmentation 0.27 and the
    # published recipes that pad; False keeps them, as mmsegmentation 0.20.
    "cut_padding": True,
}
# As with --aug-test of the originals.
MULTI_SCALE = {**SINGLE_SCALE, "ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}

BASE = {
    "variant": "",
    "seed": 0,
    # True: a GPU gives the same bits in every run, which takes more time. CPU and TPU need no such
    # setting.
    "deterministic": False,
    "steps": 160_000,
    "batch_size": 16,  # images per step over all devices
    # The weights to start from: a run's directory, a PyTorch file, or zoo:NAME; empty: scratch.
    "init": "",
    "model": {},
    "data": {
        "dataset": "cityscapes",
        "root": "data/cityscapes",
        "source": "files",  # or "tfds:NAME": prepared by TensorFlow Datasets; root is its data_dir
        "train_split": "train",
        "val_split": "val",
        "val_dataset": "",  # evaluated on; empty: the one that is trained on
        "val_root": "",  # and its folder; empty: the same
        "val_source": "",  # and how it is kept; empty: the same
        "scale_wh": (2048, 1024),  # the scale that ratio_range multiplies
        "ratio_range": (0.5, 2.0),
        "crop_hw": (512, 1024),
        "cat_max_ratio": 0.75,  # largest share of one class in a crop
        "flip_probability": 0.5,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "test_scale_wh": (2048, 1024),
        "test_multiple": 1,  # then each side is stretched up to a multiple of this
        "workers": 8,  # processes that read and augment; 0 does it in the training process
        "prefetch": 2,  # batches each of them holds ready
        "skip_corrupt": False,  # True: replace unreadable samples by the next one, and count them
    },
    "loss": {
        "auxiliary_weight": 0.4,
        "mask2former": {
            "num_points": 12544,  # where masks are compared
            "oversample_ratio": 3.0,  # candidates for the uncertain points, per point
            "importance_sample_ratio": 0.75,  # share of the uncertain points
            "max_targets": 64,  # classes of an image; the log counts those that do not fit
        },
    },
    "optim": {
        "lr": 6e-5,
        "layer_decay": 1.0,
        # Instead of rates by layer: (part of a path, factor of the rate, factor of weight_decay),
        # of which the longest that is found counts.
        "custom_keys": (),
        "betas": (0.9, 0.999),
        "weight_decay": 0.05,
        "warmup_steps": 1500,
        "warmup_ratio": 1e-6,
        "power": 1.0,
        "clip_norm": 0.0,  # 0: no clipping
        "accumulation": 1,  # parts of the batch that are computed one after the other
        "ema_decay": 0.0,  # 0: no moving average; otherwise it is what is evaluated
    },
    "mesh": {"data": -1, "fsdp": 1},  # devices per axis; -1: all that are left
    "sharding": (("/kernel$", "fsdp"), ("", "replicated")),  # first pattern found in the path
    "checkpoint": {"every_steps": 1000, "keep": 1},  # and the best by mIoU
    "eval": {
        "every_steps": 16_000,
        "images_per_device": 1,  # or windows
        "protocol": "ss",  # or "ms": which of the two below
        "ss": SINGLE_SCALE,
        "ms": MULTI_SCALE,
        "mode": "whole",  # or "slide": in windows of crop_hw every stride_hw, their scores averaged
        "crop_hw": (512, 512),
        "stride_hw": (341, 341),
        "pictures": 4,  # of the first images, and as many of the worst
        # False counts predictions of outputs beyond the dataset's classes as errors, as the
        # published numbers do; True leaves these outputs out.
        "mask_absent_classes": False,
    },
    "log_steps": 50,
    # A trace of so many steps, after so many of the run, for xprof; 0: none.
    "profile": {"steps": 0, "after": 10},
}

# The two sizes in which Mask2Former was published here, by its channels.
NARROW = {
    "channels": 256,
    "num_heads": 8,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 2048,
    "remat": False,
}
WIDE = {
    "channels": 1024,
    "num_heads": 32,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "remat": True,
}


def upernet(backbone: dict[str, Any], num_classes: int, channels: int = 512) -> dict[str, Any]:
    """UperNet on a backbone, with the auxiliary FCN head on its third stage."""
    return {
        "dtype": "auto",  # of the computation: bfloat16 on accelerators, float32 on CPU
        "kernels": "auto",  # of deformable sampling: "xla", "gpu" or "tpu"; JAXSEG_KERNELS wins
        "backbone": backbone,
        "decode_head": {
            "kind": "upernet",
            "num_classes": num_classes,
            "channels": channels,
            "pool_scales": (1, 2, 3, 6),
            "dropout": 0.1,
        },
        "auxiliary_head": {
            "kind": "fcn",
            "num_classes": num_classes,
            "channels": 256,
            "in_index": 2,
            "dropout": 0.1,
        },
    }


def segformer(backbone: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """SegformerHead on a backbone, without an auxiliary head."""
    return {
        "dtype": "auto",
        "kernels": "auto",
        "backbone": backbone,
        "decode_head": {
            "kind": "segformer",
            "num_classes": num_classes,
            "channels": 256,
            "dropout": 0.1,
        },
        "auxiliary_head": None,
    }


def mask2former(
    backbone: dict[str, Any], num_classes: int, num_queries: int, size: dict[str, int]
) -> dict[str, Any]:
    """Mask2Former on a backbone; `size` is `NARROW` or `WIDE`."""
    return {
        "dtype": "auto",
        "kernels": "auto",
        "backbone": backbone,
        "decode_head": {
            "kind": "mask2former",
            "num_classes": num_classes,
            "num_queries": num_queries,
            **size,
        },
        "auxiliary_head": None,
    }


def recipe(variant: str, variants: Mapping[str, Mapping[str, Any]]) -> ml_collections.ConfigDict:
    """`BASE` with the settings of one variant over it.

    Raises:
      ValueError: for an unknown variant, with the list of those there are.
    """
    if variant not in variants:
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")
    config = ml_collections.ConfigDict(copy.deepcopy(BASE))
    config.variant = variant
    config.update(ml_collections.ConfigDict(variants[variant]))
    return config
