"""The config and the batches of a recorded training of a small InternImage, and its rounding."""

import numpy as np
from ml_collections import ConfigDict

import pallas_kernels
from jaxseg.recipes.base import BASE


def config_of(recording, dtype):
    """Model and optimizer as recorded, computed in `dtype`."""
    hparams = recording.hparams
    uper = hparams["kind"] == "upernet"
    classes = {"num_classes": hparams["num_classes"], "dropout": 0.0}
    auxiliary = {"kind": "fcn", "channels": hparams.get("aux_channels"), **classes}
    settings = {
        "seed": hparams["seed"],
        "steps": hparams["max_iters"],
        "loss": BASE["loss"] | {"auxiliary_weight": hparams.get("aux_weight")},
        "sharding": (),
        "model": {
            "dtype": dtype,
            "backbone": {
                "kind": "internimage",
                "channels": hparams["channels"],
                "depths": hparams["depths"],
                "groups": hparams["groups"],
                "layer_scale": 1.0,
                "post_norm": hparams["variant"].startswith("postnorm"),
                "offset_scale": 2.0 if hparams["variant"].endswith("os2") else 1.0,
            },
            "decode_head": {
                "kind": "upernet" if uper else "segformer",
                "channels": hparams["head_channels"],
                **classes,
            },
            "auxiliary_head": auxiliary if uper else None,
        },
        "optim": {
            "lr": hparams["base_lr"],
            "layer_decay": hparams["layer_decay_rate"],
            "custom_keys": (),
            "betas": hparams["betas"],
            "weight_decay": hparams["weight_decay"],
            "warmup_steps": hparams["warmup_iters"],
            "warmup_ratio": hparams["warmup_ratio"],
            "power": hparams["power"],
            "clip_norm": hparams["grad_clip_max_norm"],
            "accumulation": 1,
            "freeze": "",
            "schedule": "polynomial",
            "frozen_dtype": "float32",
            "lora": BASE["optim"]["lora"],
            "ema_decay": 0.0,
        },
    }
    return ConfigDict(settings)


def batches_of(recording):
    """Images [b,3,h,w] and labels [b,h,w] of every step; images without a record are drawn."""
    labels = recording["labels"][:, :, 0]
    steps, batch, *hw = labels.shape
    if "images" in recording:
        images = recording["images"]
    else:
        random = np.random.default_rng(recording.hparams["seed"])
        images = random.standard_normal((steps, batch, 3, *hw)).astype(np.float32)
    return list(zip(images, labels, strict=True))


def follow_reference_grid():
    """From now on, DCNv3 samples where the recorded operator did: on a grid rounded to float32.

    The original's operator for CPUs keeps the undeformed sampling points as shares of the padded
    image, in float32 also where everything else is float64. In pixels they are off by up to 1e-6.
    """
    exact = pallas_kernels.dcnv3

    def dcnv3(value, offset, mask, implementation=None, deterministic=False, **geometry):
        _, height, width, _ = value.shape
        rows, columns = (_rounding(size, **geometry) for size in (height, width))
        grid = np.broadcast_arrays(columns[None, :, :, None], rows[:, None, None, :])
        rounding = np.stack(grid, axis=-1)  # [p, q, k, k, 2], as pairs (x, y)
        per_group = rounding.reshape(*rounding.shape[:2], -1)
        offset = offset + np.tile(per_group, geometry["groups"])
        choice = {"implementation": implementation, "deterministic": deterministic}
        return exact(value, offset, mask, **geometry, **choice)

    pallas_kernels.dcnv3 = dcnv3


def _rounding(size, *, kernel_size, stride, padding, dilation, groups, offset_scale):
    """[pixels, kernel_size]: what rounding adds to the offsets along one axis of the image."""
    half = dilation * (kernel_size - 1) // 2
    padded = size + 2 * padding
    centers = half + 0.5 + stride * np.arange((padded - 2 * half - 1) // stride + 1)
    columns = dilation * np.arange(kernel_size) - half
    center_shares, column_shares = (
        axis.astype(np.float32) / np.float32(padded) for axis in (centers, columns)
    )
    rounded = center_shares[:, None] + column_shares * np.float32(offset_scale)
    pixels = centers[:, None] + columns * offset_scale
    return (rounded.astype(np.float64) * padded - pixels) / offset_scale
