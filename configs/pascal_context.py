"""Trains ViT-Adapter and InternImage on Pascal Context.

Pascal Context has 4996 training images and 5104 validation images. It has 59 classes, and all other
pixels are ignored. These are the published results. ViT-Adapter was trained on 8 GPUs; InternImage
does not state the number.

    variant                      mIoU ss / ms     crop   parameters
    upernet_beit_adapter_l       67.0 / 67.5      480     451 M
    mask2former_beit_adapter_b   64.0 / 64.4      480     120 M
    mask2former_beit_adapter_l   67.8 / 68.2      480     568 M
    mask2former_internimage_h    69.7 / 70.3      480    1094 M

    python -m jaxseg.main --config configs/pascal_context.py:upernet_beit_adapter_l \\
        --config.data.root=VOCdevkit/VOC2010 --workdir RUN
"""

from jaxseg.recipes import base, internimage, vit_adapter

CLASSES = 59
DATA = {
    "dataset": "pascal_context59",
    "root": "data/VOCdevkit/VOC2010",
    "train_split": "train",
    "val_split": "val",
    "scale_wh": (520, 520),
    "crop_hw": (480, 480),
    "test_scale_wh": (4096, 520),
    "test_multiple": 32,
}

VARIANTS = {
    "upernet_beit_adapter_l": vit_adapter.upernet("beit_adapter_l", CLASSES, DATA, steps=80_000),
    "mask2former_beit_adapter_b": vit_adapter.mask2former(
        "beit_adapter_b", CLASSES, DATA, steps=40_000, size=base.NARROW
    ),
    "mask2former_beit_adapter_l": vit_adapter.mask2former(
        "beit_adapter_l", CLASSES, DATA, steps=40_000
    ),
    "mask2former_internimage_h": {
        **internimage.mask2former(CLASSES, clip_norm=0.0),
        "steps": 40_000,
        "data": DATA,
        "eval": {"every_steps": 2_000},
    },
}


def get_config(variant="upernet_beit_adapter_l"):
    return base.recipe(variant, VARIANTS)
