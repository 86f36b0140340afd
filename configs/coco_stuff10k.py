"""Trains ViT-Adapter and InternImage on COCO-Stuff 10k.

COCO-Stuff 10k has 9000 training images, 1000 test images and 171 classes. These are the published
results. ViT-Adapter was trained on 8 GPUs; InternImage does not state the number.

    variant                               mIoU ss / ms     crop   parameters
    upernet_beit_adapter_l                51.0 / 51.4      512     451 M
    mask2former_beit_adapter_b            50.0 / 50.5      512     120 M
    mask2former_beit_adapter_l            53.2 / 54.2      512     568 M
    mask2former_internimage_h_cocostuff   59.2 / 59.6      512    1313 M

The `_cocostuff` variant starts from COCO-Stuff 164k (configs/coco_stuff164k.py).

    python -m jaxseg.main --config configs/coco_stuff10k.py:upernet_beit_adapter_l \\
        --config.data.root=coco_stuff10k --workdir RUN
"""

from jaxseg.recipes import base, internimage, vit_adapter

CLASSES = 171
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
    "upernet_beit_adapter_l": vit_adapter.upernet("beit_adapter_l", CLASSES, DATA, steps=80_000),
    "mask2former_beit_adapter_b": vit_adapter.mask2former(
        "beit_adapter_b", CLASSES, DATA, steps=40_000, size=base.NARROW
    ),
    "mask2former_beit_adapter_l": vit_adapter.mask2former(
        "beit_adapter_l", CLASSES, DATA, steps=40_000
    ),
    "mask2former_internimage_h_cocostuff": {
        **internimage.mask2former(CLASSES, num_queries=200, head=base.WIDE, lr=1e-5, clip_norm=0.0),
        "steps": 40_000,
        "data": DATA,
        "eval": {"every_steps": 2_000},
        "init": "zoo:mask2former_internimage_h_896_80k_cocostuff164k",
    },
}


def get_config(variant="upernet_beit_adapter_l"):
    return base.recipe(variant, VARIANTS)
