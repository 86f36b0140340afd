"""Trains InternImage and ViT-Adapter on ADE20K.

ADE20K has 20210 training images, 2000 validation images and 150 classes. These are the published
results. InternImage-H and Mask2Former with crops of 896 were trained on 16 GPUs, the others on 8.

    variant                                  mIoU ss / ms     crop   parameters   training
    upernet_internimage_t                    47.9 / 48.1      512      59 M       10.5 h
    upernet_internimage_s                    50.1 / 50.9      512      80 M       11.5 h
    upernet_internimage_b                    50.8 / 51.3      512     128 M       12 h
    upernet_internimage_l                    53.9 / 54.1      640     256 M       19 h
    upernet_internimage_xl                   55.0 / 55.3      640     368 M       22 h
    upernet_internimage_h                    59.9 / 60.3      896    1120 M       48 h
    upernet_internimage_g                    not published    896    3113 M
    upernet_deit_adapter_t                   42.6 / 43.6      512      36 M
    upernet_deit_adapter_s                   46.2 / 47.1      512      58 M
    upernet_deit_adapter_b                   48.8 / 49.7      512     134 M
    upernet_deit_adapter_light_b             not published    512     126 M
    upernet_augreg_adapter_t                 43.9 / 44.8      512      36 M
    upernet_augreg_adapter_b                 51.9 / 52.5      512     134 M
    upernet_augreg_adapter_l                 53.4 / 54.4      512     364 M
    upernet_uniperceiver_adapter_l           55.0 / 55.4      512     364 M
    upernet_beit_adapter_l                   58.0 / 58.4      640     451 M
    upernet_beit_l                           not published    512     440 M
    mask2former_beit_adapter_l               58.3 / 59.0      640     568 M
    mask2former_beit_adapter_l_cocostuff     59.4 / 60.5      896     571 M
    mask2former_beitv2_adapter_l             not published    896     571 M
    mask2former_beitv2_adapter_l_cocostuff   61.2 / 61.5      896     571 M
    mask2former_internimage_h_cocostuff      62.6 / 62.9      896    1310 M       36 h
    mask2former_dinov3_vit7b16               62.6 / 63.0      896    7643 M
    mask2former_dinov3_{vits16,vits16plus,vitb16,vitl16,vith16plus}   not published
    linear_dinov2_{vits14,vitb14,vitl14,vitg14}{,_reg}   not measured with these settings
    linear_dinov3_vits16                     47.0 / -         512      22 M
    linear_dinov3_vits16plus                 48.8 / -         512      29 M
    linear_dinov3_vitb16                     51.8 / -         512      86 M
    linear_dinov3_vitl16                     54.9 / -         512     303 M
    linear_dinov3_vith16plus                 54.8 / -         512     841 M
    linear_dinov3_vit7b16                    55.9 / -         512    6717 M

The `_cocostuff` variants start from COCO-Stuff 164k (configs/coco_stuff164k.py). The published
mask2former_dinov3_vit7b16 was trained on COCO-Stuff 164k and Hypersim before, which the recipe here
is not. The transformers of DINOv2 and DINOv3 are frozen. Those of DINOv3 have to be downloaded by
hand.

    python -m jaxseg.main --config configs/ade20k.py:upernet_internimage_t \\
        --config.data.root=ADEChallengeData2016 --workdir RUN
"""

from jaxseg.recipes import base, dinov2, dinov3, internimage, vit_adapter

CLASSES = 150
INTERNIMAGE_CROPS = {"t": 512, "s": 512, "b": 512, "l": 640, "xl": 640, "h": 896, "g": 896}
WITH_UPERNET = (
    "deit_adapter_t",
    "deit_adapter_s",
    "deit_adapter_b",
    "deit_adapter_light_b",
    "augreg_adapter_t",
    "augreg_adapter_b",
    "augreg_adapter_l",
    "uniperceiver_adapter_l",
    "beit_adapter_l",
    "beit_l",
)


def data(crop, longest):
    """Returns the data settings for square crops.

    Images are scaled to fit `crop` × `longest` pixels, in either orientation.
    """
    return {
        "dataset": "ade20k",
        "root": "data/ADEChallengeData2016",
        "train_split": "training",
        "val_split": "validation",
        "scale_wh": (longest, crop),
        "crop_hw": (crop, crop),
        "test_scale_wh": (longest, crop),
        "test_multiple": 32,
    }


def mask2former_896(backbone, steps, **evaluation):
    recipe = vit_adapter.mask2former(backbone, CLASSES, data(896, 3584), steps, num_queries=200)
    return {**recipe, "eval": {**recipe["eval"], "every_steps": 8_000, **evaluation}}


BEIT_MS = vit_adapter.at_sides((640, 768, 896), pad="before_normalize")
BEITV2_MS = vit_adapter.at_sides((800, 832, 864, 896), pad="after_normalize")


VARIANTS = {
    **{
        f"upernet_internimage_{size}": {**internimage.upernet(size), "data": data(crop, 4 * crop)}
        for size, crop in INTERNIMAGE_CROPS.items()
    },
    **{
        f"upernet_{name}": vit_adapter.upernet(
            name, CLASSES, data(640 if name == "beit_adapter_l" else 512, 2048)
        )
        for name in WITH_UPERNET
    },
    "mask2former_beit_adapter_l": vit_adapter.mask2former(
        "beit_adapter_l", CLASSES, data(640, 2048), steps=160_000
    ),
    "mask2former_beit_adapter_l_cocostuff": {
        **mask2former_896("beit_adapter_l", steps=80_000, ms=BEIT_MS),
        "init": "zoo:mask2former_beit_adapter_large_896_80k_cocostuff164k_ss",
    },
    "mask2former_beitv2_adapter_l": mask2former_896(
        "beitv2_adapter_l", steps=160_000, ms=BEITV2_MS
    ),
    "mask2former_beitv2_adapter_l_cocostuff": {
        # Its published single-scale score also averages over the mirrored images.
        **mask2former_896("beitv2_adapter_l", steps=80_000, ss={"flip": True}, ms=BEITV2_MS),
        "init": "zoo:mask2former_beitv2_adapter_large_896_80k_cocostuff164k_ss",
    },
    "mask2former_internimage_h_cocostuff": {
        **internimage.mask2former(CLASSES, num_queries=200, head=base.WIDE, lr=1e-5),
        "steps": 80_000,
        "data": data(896, 3584),
        "eval": {
            "every_steps": 2_000,
            "ms": {"ratios": tuple(side / 896 for side in (768, 832, 896, 960, 1024))},
        },
        "init": "zoo:mask2former_internimage_h_896_80k_cocostuff164k",
    },
    **{
        f"mask2former_dinov3_{name}": dinov3.mask2former(
            name, CLASSES, data(896, 3584), lr=3e-5, steps=20_000, warmup_steps=1500
        )
        for name in dinov3.SEGMENTORS
    },
    **{
        f"linear_dinov2_{name}": dinov2.linear(name, CLASSES, data(dinov2.CROP, 4 * dinov2.CROP))
        for name in dinov2.BACKBONES
    },
    **{
        f"linear_dinov3_{name}": dinov3.linear(name, CLASSES, data(512, 2048))
        for name in dinov3.SEGMENTORS
    },
}


def get_config(variant="upernet_internimage_t"):
    return base.recipe(variant, VARIANTS)
