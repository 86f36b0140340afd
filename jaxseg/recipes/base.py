"""Holds the settings that every recipe starts from, and the heads that recipes share.

Each family of backbones has a file of its own in this folder.
"""

import copy
from collections.abc import Mapping
from typing import Any

import ml_collections

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)

# The views of an image in evaluation. Their probabilities are averaged.
SINGLE_SCALE = {
    "ratios": (1.0,),  # factors of test_scale_wh
    "flip": False,  # True: the mirrored image too
    # "within": fit the image within test_scale_wh, then enlarge each side to test_multiple.
    # "short_side": scale the shorter side to that of test_scale_wh, or to crop_hw[0] if that
    # is larger. The longer side is not bounded (SETR_Resize).
    # "dinov3": the shorter side is exactly that of test_scale_wh times the ratio; for a ratio below
    # 1, rounded up to a multiple of 32. Pillow resizes. Windows in smaller images are squares.
    "resize": "within",
    # How to pad images smaller than crop_hw: "none", "before_normalize" with black, or
    # "after_normalize" with the mean.
    "pad": "none",
    # True cuts off the scores of padding before the last resize, as mmsegmentation 0.27 and the
    # published recipes that pad do. False keeps them, as mmsegmentation 0.20 does.
    "cut_padding": True,
}
# The views of --aug-test in the original repositories.
MULTI_SCALE = {**SINGLE_SCALE, "ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}

BASE = {
    "variant": "",  # the name of the recipe, set by its file
    "seed": 0,  # of the weights, the order of the data, and augmentation
    # True: a GPU gives the same bits in every run, but is slower.
    "deterministic": False,
    "steps": 160_000,  # updates of the weights
    "batch_size": 16,  # images per step, over all devices
    # The weights to start from: a run's directory, a PyTorch file, zoo:NAME or
    # hf://OWNER/REPOSITORY. Empty: random ones.
    "init": "",
    "model": {},
    "data": {
        "dataset": "cityscapes",  # a name in jaxseg/data/datasets
        "root": "data/cityscapes",  # its folder
        "source": "files",  # or "tfds:NAME", prepared by TensorFlow Datasets with root as data_dir
        "train_split": "train",  # several are joined by "+"
        "val_split": "val",  # the split of the evaluation
        "val_dataset": "",  # dataset of the evaluation; empty: the same
        "val_root": "",  # its folder; empty: the same
        "val_source": "",  # its source; empty: the same
        "scale_wh": (2048, 1024),  # training images fit within this, times ratio_range
        "ratio_range": (0.5, 2.0),  # range of the random factor of scale_wh
        "crop_hw": (512, 1024),  # height and width of training images
        "cat_max_ratio": 0.75,  # largest share of one class in a crop
        # Probability that a crop shows a class that is drawn evenly from those of its image.
        "class_crop_probability": 0.0,
        "flip_probability": 0.5,  # of mirroring a training image left to right
        # How training images are resized and distorted: "mmseg", or as DINOv3's linear head.
        "augmentation": "mmseg",
        "mean": IMAGENET_MEAN,  # subtracted from RGB values
        "std": IMAGENET_STD,  # divides RGB values
        "test_scale_wh": (2048, 1024),  # images of the evaluation fit within this
        "test_multiple": 1,  # each side is then enlarged to a multiple of this
        "workers": 8,  # processes that read and augment; 0: the training process does it
        "prefetch": 2,  # batches that each worker prepares ahead
        "skip_corrupt": False,  # True: replace an unreadable sample by the next one, and count it
    },
    "loss": {
        "auxiliary_weight": 0.4,  # weight of the auxiliary head's loss
        # Losses of logits and their weights, such as (("cross_entropy", 1.0), ("dice", 0.5)). The
        # names are cross_entropy, dice, focal, lovasz, ohem and tversky. Empty: the cross-entropy.
        "terms": (),
        # A weight for each class, or "inverse" or "enet" to compute them from the classes' shares
        # of the training labels.
        "class_weight": "",
        "class_weights": (),  # these weights, filled in when training starts
        "label_smoothing": 0.0,  # share of a pixel's target that is spread over all classes
        "ignored_in_mean": True,  # whether means over pixels count ignored ones, as the reference
        "focal_gamma": 2.0,  # exponent of the focal loss
        "ohem_threshold": 0.7,  # ohem counts pixels whose class has a lower probability
        "ohem_kept": 0.1,  # least share of an image's pixels that ohem counts
        "tversky": (0.3, 0.7),  # weights of false positives and of false negatives
        "mask2former": {
            "num_points": 12544,  # points at which masks are compared
            "oversample_ratio": 3.0,  # candidates per point, to choose uncertain ones from
            "importance_sample_ratio": 0.75,  # share of points chosen for uncertainty
            "max_targets": 64,  # classes per image; the log counts those beyond
        },
    },
    "optim": {
        "lr": 6e-5,  # peak learning rate of AdamW
        "layer_decay": 1.0,  # factor of the learning rate from one backbone layer to the one below
        # Replaces layer_decay: (part of a path, factor of lr, factor of weight_decay). The longest
        # part that occurs in a parameter's path applies.
        "custom_keys": (),
        "betas": (0.9, 0.999),  # decay of AdamW's moments
        "weight_decay": 0.05,  # decoupled, of AdamW
        "warmup_steps": 1500,  # steps of linear warm-up
        "warmup_ratio": 1e-6,  # share of lr at the first step
        # The decay of the rate to 0: "polynomial", or "dinov3" for half a cosine.
        "schedule": "polynomial",
        "power": 1.0,  # of the polynomial decay
        "clip_norm": 0.0,  # 0: no clipping
        "accumulation": 1,  # sequential parts of the batch; their gradients are averaged
        # Regular expressions for the beginnings of paths, such as "backbone/", separated by commas:
        # these parameters keep their values, and their modules run as in evaluation.
        "freeze": "",
        "frozen_dtype": "float32",  # type in which they are held; bfloat16 takes half the memory
        "lora": {
            # Low-rank adaptation: trains two matrices of this rank beside kernels, which keep their
            # values. 0: none.
            "rank": 0,
            "alpha": 16.0,  # the product of the two counts alpha / rank
            # A regular expression for the paths of the linear layers, by default of attention.
            "layers": "backbone/(blocks|layers)_[0-9]+/(self_)?attn/(qkv|proj|in_proj|out_proj)",
        },
        "ema_decay": 0.0,  # decay of the weights' moving average, which is evaluated; 0: none
    },
    "mesh": {"data": -1, "fsdp": 1},  # devices per axis; -1: all remaining
    "sharding": (("/kernel$", "fsdp"), ("", "replicated")),  # the first match applies
    "checkpoint": {
        "every_steps": 1000,  # steps between two checkpoints
        "keep": 1,  # the newest checkpoints that are kept, besides the best one by mIoU
        # What a resumed run may change, separated by commas: batch_size, optim.clip_norm, optim.lr,
        # steps. The new values hold from the resumed step on.
        "allow": "",
    },
    "eval": {
        "every_steps": 16_000,  # evaluate each time after so many steps
        "images_per_device": 1,  # or windows per device
        "protocol": "ss",  # or "ms": selects one of the next two
        "ss": SINGLE_SCALE,  # views at a single scale
        "ms": MULTI_SCALE,  # views at several scales
        "mode": "whole",  # or "slide": windows of crop_hw every stride_hw, with averaged scores
        "crop_hw": (512, 512),  # height and width of a window
        "stride_hw": (341, 341),  # distance of windows
        # What is measured besides: "boundary_iou"; "calibration", for which all probabilities are
        # computed, not only the classes.
        "measures": (),
        "pictures": 4,  # panels of the first images, and of as many worst and best ones
        # Outputs beyond the dataset's classes: False counts their predictions as errors, as the
        # published numbers do. True ignores these outputs.
        "mask_absent_classes": False,
    },
    "log_steps": 50,  # steps between two log lines
    "track": ("tensorboard",),  # trackers that get its numbers: also "wandb" and "trackio"
    # Traces this many steps for xprof, after so many steps of the run. 0: no trace.
    "profile": {"steps": 0, "after": 10},
}

# The two sizes of the published Mask2Former heads.
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
    """Returns UPerNet on a backbone, with an auxiliary FCN head on the third stage.

    Args:
      backbone: the settings of the backbone.
      num_classes: the number of outputs.
      channels: the channels of the UPerNet head.
    """
    return {
        "dtype": "auto",  # dtype of the computation: bfloat16 on accelerators, float32 on CPU
        "kernels": "auto",  # or "xla", "gpu", "tpu"; JAXSEG_KERNELS wins
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
    """Returns a SegFormer head on a backbone, without an auxiliary head."""
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


def linear(backbone: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Returns a linear head on all feature maps of a backbone, without an auxiliary head."""
    return {
        "dtype": "auto",
        "kernels": "auto",
        "backbone": backbone,
        "decode_head": {
            "kind": "linear",
            "num_classes": num_classes,
            "in_index": (0, 1, 2, 3),
            "dropout": 0.1,
        },
        "auxiliary_head": None,
    }


def mask2former(
    backbone: dict[str, Any], num_classes: int, num_queries: int, size: dict[str, int]
) -> dict[str, Any]:
    """Returns Mask2Former on a backbone, without an auxiliary head.

    Args:
      backbone: the settings of the backbone.
      num_classes: the number of classes.
      num_queries: the number of queries.
      size: `NARROW` or `WIDE`.
    """
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
    """Returns `BASE` overridden by the settings of one variant.

    Args:
      variant: the name of the variant.
      variants: the settings of each variant, which are merged deeply into `BASE`.

    Raises:
      ValueError: for an unknown variant, with the list of known ones.
    """
    if variant not in variants:
        raise ValueError(f"no variant {variant!r}; the variants are: {', '.join(variants)}")
    config = ml_collections.ConfigDict(copy.deepcopy(BASE))
    config.variant = variant
    config.update(ml_collections.ConfigDict(variants[variant]))
    return config
