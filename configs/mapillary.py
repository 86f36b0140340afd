"""Trains InternImage and ViT-Adapter on Mapillary Vistas v1.2, mapped to the Cityscapes classes.

The labels are mapped to the 19 classes of Cityscapes. The `_mapillary` variants of
configs/cityscapes.py start from these models. They are trained on the training and the validation
images, and evaluated on Cityscapes. No scores are published. The variants are
upernet_internimage_l (11.5 h on 8 A100 GPUs), upernet_internimage_xl (13 h),
segformer_internimage_l (9 h), segformer_internimage_xl (10 h), mask2former_internimage_h and
mask2former_beit_adapter_l.

    python -m jaxseg.main --config configs/mapillary.py:upernet_internimage_l \\
        --config.data.root=MAPILLARY --config.data.val_root=CITYSCAPES --workdir RUN

The mapping is the published one. It maps label values above 65, which the dataset does not have, to
road. --config.data.dataset=mapillary_to_cityscapes_strict rejects them. `mapillary65` and
`mapillary66` are the dataset's own classes, without and with the class for unlabeled pixels:

    --config.data.dataset=mapillary65 --config.data.train_split=training \\
    --config.data.val_dataset= --config.data.val_root= --config.data.val_split=validation
"""

from jaxseg.recipes import base, internimage, vit_adapter

CLASSES = 19
DATA = {
    "dataset": "mapillary_to_cityscapes",
    "root": "data/Mapillary",
    "train_split": "training+validation",
    "val_dataset": "cityscapes",
    "val_root": "data/cityscapes",
}
RECTANGLES = {
    "steps": 80_000,
    "data": {**DATA, "ratio_range": (0.5, 1.0)},
    "eval": {"every_steps": 8_000},
}
SQUARES = {**DATA, "crop_hw": (896, 896), "test_multiple": 32}
BEIT_ADAPTER = vit_adapter.mask2former("beit_adapter_l", CLASSES, SQUARES, steps=80_000)

VARIANTS = {
    **{
        f"upernet_internimage_{size}": internimage.upernet(size) | RECTANGLES
        for size in ("l", "xl")
    },
    **{
        f"segformer_internimage_{size}": internimage.segformer(size) | RECTANGLES
        for size in ("l", "xl")
    },
    "mask2former_internimage_h": {
        **internimage.mask2former(CLASSES),
        "steps": 80_000,
        "data": SQUARES,
        "eval": {**BEIT_ADAPTER["eval"], "every_steps": 2_000},
    },
    "mask2former_beit_adapter_l": {
        **BEIT_ADAPTER,
        "eval": {**BEIT_ADAPTER["eval"], "every_steps": 1_000},
    },
}


def get_config(variant="upernet_internimage_l"):
    return base.recipe(variant, VARIANTS)
