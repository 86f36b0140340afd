"""InternImage on Mapillary Vistas v1.2, its labels mapped to the 19 classes of Cityscapes.

The step before the `_mapillary` variants of configs/cityscapes.py: trained on the training and the
validation images, evaluated on Cityscapes. No score of it is published. Variants:
upernet_internimage_l (11.5 h on 8 A100 GPUs), upernet_internimage_xl (13 h),
segformer_internimage_l (9 h), segformer_internimage_xl (10 h).

    python -m jaxseg.main --config configs/mapillary.py:upernet_internimage_l \\
        --config.data.root=MAPILLARY --config.data.val_root=CITYSCAPES --workdir RUN
"""

from configs import common, internimage

MAPILLARY = {
    "steps": 80_000,
    "data": {
        "dataset": "mapillary_to_cityscapes",
        "root": "data/Mapillary",
        "train_split": "training+validation",
        "ratio_range": (0.5, 1.0),
        "val_dataset": "cityscapes",
        "val_root": "data/cityscapes",
    },
    "eval": {"every_steps": 8_000},
}

VARIANTS = {
    **{
        f"upernet_internimage_{size}": internimage.upernet(size) | MAPILLARY for size in ("l", "xl")
    },
    **{
        f"segformer_internimage_{size}": internimage.segformer(size) | MAPILLARY
        for size in ("l", "xl")
    },
}


def get_config(variant="upernet_internimage_l"):
    return common.recipe(variant, VARIANTS)
