"""ViT-Adapter on Pascal Context (4996 training images, 5104 for validation).

59 classes; what belongs to none of them is ignored. Published, on 8 GPUs:

    variant                 mIoU ss / ms     crop   parameters
    upernet_beit_adapter_l  67.0 / 67.5      480     451 M

    python -m jaxseg.main --config configs/pascal_context.py:upernet_beit_adapter_l \\
        --config.data.root=VOCdevkit/VOC2010 --workdir RUN
"""

from configs import common, vit_adapter

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
    "upernet_beit_adapter_l": vit_adapter.upernet(
        "beit_adapter_l", num_classes=59, data=DATA, steps=80_000
    )
}


def get_config(variant="upernet_beit_adapter_l"):
    return common.recipe(variant, VARIANTS)
