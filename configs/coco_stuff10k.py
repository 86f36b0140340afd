"""ViT-Adapter on COCO-Stuff 10k (9000 training images, 1000 for testing, 171 classes).

Published, on 8 GPUs:

    variant                 mIoU ss / ms     crop   parameters
    upernet_beit_adapter_l  51.0 / 51.4      512     451 M

    python -m jaxseg.main --config configs/coco_stuff10k.py:upernet_beit_adapter_l \\
        --config.data.root=coco_stuff10k --workdir RUN
"""

from configs import common, vit_adapter

DATA = {
    "dataset": "coco_stuff10k",
    "root": "data/coco_stuff10k",
    "train_split": "train2014",
    "val_split": "test2014",
    "scale_wh": (2048, 512),
    "crop_hw": (512, 512),
    "test_scale_wh": (2048, 512),
    "test_multiple": 32,
}

VARIANTS = {
    "upernet_beit_adapter_l": vit_adapter.upernet(
        "beit_adapter_l", num_classes=171, data=DATA, steps=80_000
    )
}


def get_config(variant="upernet_beit_adapter_l"):
    return common.recipe(variant, VARIANTS)
