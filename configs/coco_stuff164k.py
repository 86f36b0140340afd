"""ViT-Adapter on COCO-Stuff 164k (118287 training images, 5000 for validation, 171 classes).

Published, on 8 GPUs:

    variant                 mIoU ss / ms     crop   parameters
    upernet_beit_adapter_l  50.5 / 50.7      640     451 M

    python -m jaxseg.main --config configs/coco_stuff164k.py:upernet_beit_adapter_l \\
        --config.data.root=coco_stuff164k --workdir RUN
"""

from configs import common, vit_adapter

DATA = {
    "dataset": "coco_stuff164k",
    "root": "data/coco_stuff164k",
    "train_split": "train2017",
    "val_split": "val2017",
    "scale_wh": (2560, 640),
    "crop_hw": (640, 640),
    "test_scale_wh": (2560, 640),
    "test_multiple": 32,
}

VARIANTS = {
    "upernet_beit_adapter_l": vit_adapter.upernet(
        "beit_adapter_l", num_classes=171, data=DATA, steps=80_000
    )
}


def get_config(variant="upernet_beit_adapter_l"):
    return common.recipe(variant, VARIANTS)
