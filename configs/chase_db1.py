"""Trains ViT-Adapter on CHASE_DB1.

CHASE_DB1 has 28 photographs of retinas of 960 × 999 pixels. Its classes are background and vessels.
The published model is mask2former_beit_adapter_l, trained on 4 GPUs with four images each. It has a
mean Dice of 89.4 at a single scale and 350 M parameters. Its weights were not published.

    python -m jaxseg.main --config configs/chase_db1.py:mask2former_beit_adapter_l \\
        --config.data.root=CHASE_DB1 --workdir RUN
"""

from jaxseg.recipes import base, vit_adapter

DATA = {
    "dataset": "chase_db1",
    "root": "data/CHASE_DB1",
    "train_split": "training",
    "val_split": "validation",
    "scale_wh": (960, 999),
    "crop_hw": (128, 128),
    "test_scale_wh": (960, 999),
    "test_multiple": 32,
}
SIZE = {**base.NARROW, "encoder_ffn_dim": 2048}

VARIANTS = {
    "mask2former_beit_adapter_l": vit_adapter.mask2former(
        "beit_adapter_l", 2, DATA, steps=40_000, size=SIZE
    )
}


def get_config(variant="mask2former_beit_adapter_l"):
    return base.recipe(variant, VARIANTS)
