"""Trains ViT-Adapter and InternImage on COCO-Stuff 164k.

COCO-Stuff 164k has 118287 training images, 5000 validation images and 171 classes. These are the
published results. UPerNet was trained on 8 GPUs, Mask2Former on 16.

    variant                        mIoU ss / ms     crop   parameters   training
    upernet_beit_adapter_l         50.5 / 50.7      640     451 M
    mask2former_beit_adapter_l     51.7 / 52.0      896     571 M
    mask2former_beitv2_adapter_l   52.3 / -         896     571 M
    mask2former_internimage_h      52.6 / 52.8      896    1310 M       36 h
    mask2former_dinov3_{vits16,vits16plus,vitb16,vitl16,vith16plus,vit7b16}   not published

The score of DINOv3 with Mask2Former on this dataset, 53.8 / 54.0 of vit7b16, is of crops of 1280,
and its weights were not published. These recipes have the settings of the published segmentor's
first training, with crops of 896.

    python -m jaxseg.main --config configs/coco_stuff164k.py:upernet_beit_adapter_l \\
        --config.data.root=coco_stuff164k --workdir RUN
"""

from jaxseg.recipes import base, dinov3, internimage, vit_adapter

CLASSES = 171


def data(crop):
    """Returns the data settings for square crops.

    Images are scaled to fit `crop` × `4 · crop` pixels, in either orientation.
    """
    return {
        "dataset": "coco_stuff164k",
        "root": "data/coco_stuff164k",
        "train_split": "train2017",
        "val_split": "val2017",
        "scale_wh": (4 * crop, crop),
        "crop_hw": (crop, crop),
        "test_scale_wh": (4 * crop, crop),
        "test_multiple": 32,
    }


def mask2former(backbone):
    recipe = vit_adapter.mask2former(backbone, CLASSES, data(896), steps=80_000, num_queries=200)
    several = vit_adapter.at_sides((640, 768, 896), pad="before_normalize")
    return {**recipe, "eval": {**recipe["eval"], "ms": several}}


VARIANTS = {
    "upernet_beit_adapter_l": vit_adapter.upernet(
        "beit_adapter_l", CLASSES, data(640), steps=80_000
    ),
    **{f"mask2former_{name}": mask2former(name) for name in ("beit_adapter_l", "beitv2_adapter_l")},
    "mask2former_internimage_h": {
        **internimage.mask2former(CLASSES, num_queries=200, head=base.WIDE, clip_norm=0.0),
        "steps": 80_000,
        "data": data(896),
        "eval": {"every_steps": 8_000},
    },
    **{
        f"mask2former_dinov3_{name}": dinov3.mask2former(
            name, CLASSES, data(896), lr=1.5e-5, steps=80_000, warmup_steps=6000
        )
        for name in dinov3.SEGMENTORS
    },
}


def get_config(variant="upernet_beit_adapter_l"):
    return base.recipe(variant, VARIANTS)
