"""Trains ViT-Adapter on ISPRS Potsdam.

Potsdam has aerial images in tiles of 512 pixels, and 6 classes. The published model is
mask2former_beit_adapter_l, trained on 8 GPUs with one image each. It has an mIoU of 80.0 at a
single scale and 352 M parameters. Its weights were not published.

    python -m jaxseg.main --config configs/potsdam.py:mask2former_beit_adapter_l \\
        --config.data.root=potsdam --workdir RUN
"""

from jaxseg.recipes import base, vit_adapter

DATA = {
    "dataset": "potsdam",
    "root": "data/potsdam",
    "train_split": "train",
    "val_split": "val",
    "scale_wh": (2048, 512),
    "crop_hw": (512, 512),
    "test_scale_wh": (2048, 512),
    "test_multiple": 32,
}
SIZE = {**base.NARROW, "encoder_ffn_dim": 2048}

VARIANTS = {
    "mask2former_beit_adapter_l": {
        **vit_adapter.mask2former("beit_adapter_l", 6, DATA, steps=80_000, size=SIZE),
        "batch_size": 8,
    }
}


def get_config(variant="mask2former_beit_adapter_l"):
    return base.recipe(variant, VARIANTS)
