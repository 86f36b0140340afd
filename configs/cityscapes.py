"""Trains InternImage and ViT-Adapter on Cityscapes.

Cityscapes has 2975 finely labeled training images and 500 validation images. These are the
published results. ViT-Adapter was trained on 16 GPUs, the others on 8.

    variant                              mIoU ss / ms     parameters   training
    upernet_internimage_t                82.58 / 83.40      59 M       14.5 h
    upernet_internimage_s                82.74 / 83.45      80 M       16.5 h
    upernet_internimage_b                83.18 / 83.97     128 M       17 h
    upernet_internimage_l                83.68 / 84.41     256 M       23 h
    upernet_internimage_xl               83.62 / 84.28     368 M       26 h
    upernet_internimage_l_mapillary      85.94 / 86.22     256 M       23 h
    upernet_internimage_xl_mapillary     86.20 / 86.42     368 M       26 h
    segformer_internimage_l_mapillary    85.16 / 85.67     220 M       17 h
    segformer_internimage_xl_mapillary   85.41 / 85.93     330 M       19.5 h
    mask2former_beit_adapter_l_mapillary 84.9  / 85.8      571 M
    mask2former_internimage_h_mapillary  86.37 / 86.96    1094 M
    mask2former_dinov3_{vits16,vits16plus,vitb16,vitl16,vith16plus,vit7b16}   not published

    python -m jaxseg.main --config configs/cityscapes.py:upernet_internimage_t \\
        --config.data.root=DIR --workdir RUN

The published score of DINOv3's vit7b16 with Mask2Former, 86.1 / 86.7, is of crops of 1280 and of a
training on other datasets before; its weights were not published. The recipes here are ours, with
the published rate.

The `_mapillary` variants start from Mapillary (configs/mapillary.py). Those of InternImage train on
the finely and the coarsely labeled images together (`train+train_extra`, labels in
refinement_final/). The original UPerNet configs name the SegFormer checkpoint as their start, which
would leave the head random. Here they start from the UPerNet checkpoint, which was presumably
meant.

All heads but Mask2Former have 150 outputs, although Cityscapes has 19 classes. Predictions of the
other 131 count as errors, as in the published scores. --config.eval.mask_absent_classes=True
ignores these outputs.
"""

from jaxseg.recipes import base, dinov3, internimage, vit_adapter

CLASSES = 19
MAPILLARY = {
    "data": {"train_split": "train+train_extra"},
    "eval": {"every_steps": 4_000},
}
# BEiT needs sides that are multiples of 32. The original omits `test_multiple`, because Cityscapes
# images already have such sides.
SQUARES = {"crop_hw": (896, 896), "test_multiple": 32}
BEIT_ADAPTER = vit_adapter.mask2former("beit_adapter_l", CLASSES, SQUARES, steps=80_000)

VARIANTS = {
    **{
        f"upernet_internimage_{size}": internimage.upernet(size)
        for size in ("t", "s", "b", "l", "xl")
    },
    **{
        f"upernet_internimage_{size}_mapillary": {
            **internimage.upernet(size),
            **MAPILLARY,
            "init": f"zoo:upernet_internimage_{size}_512x1024_80k_mapillary",
        }
        for size in ("l", "xl")
    },
    **{
        f"segformer_internimage_{size}_mapillary": {
            **internimage.segformer(size),
            **MAPILLARY,
            "init": f"zoo:segformer_internimage_{size}_512x1024_80k_mapillary",
        }
        for size in ("l", "xl")
    },
    "mask2former_beit_adapter_l_mapillary": {
        **BEIT_ADAPTER,
        "eval": {
            **BEIT_ADAPTER["eval"],
            "every_steps": 1_000,
            "ms": {"ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), "resize": "short_side"},
        },
        "init": "zoo:mask2former_beit_adapter_large_896_80k_mapillary_ss",
    },
    "mask2former_internimage_h_mapillary": {
        **internimage.mask2former(CLASSES, lr=1e-5),
        "steps": 80_000,
        "data": {**MAPILLARY["data"], "crop_hw": (1024, 1024), "test_multiple": 32},
        "eval": {
            "every_steps": 2_000,
            "mode": "slide",
            "crop_hw": (1024, 1024),
            "stride_hw": (512, 512),
        },
        "init": "zoo:mask2former_internimage_h_896x896_80k_mapillary",
    },
    **{
        f"mask2former_dinov3_{name}": dinov3.mask2former(
            name, CLASSES, SQUARES, lr=1.5e-5, steps=20_000, warmup_steps=1500
        )
        for name in dinov3.SEGMENTORS
    },
}


def get_config(variant="upernet_internimage_t"):
    return base.recipe(variant, VARIANTS)
