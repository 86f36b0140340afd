"""InternImage and ViT-Adapter on ADE20K (20210 training images, 2000 for validation, 150 classes).

Published (InternImage-H on 16 A100 GPUs, the others on 8):

    variant                         mIoU ss / ms     crop   parameters   training
    upernet_internimage_t           47.9 / 48.1      512      59 M       10.5 h
    upernet_internimage_s           50.1 / 50.9      512      80 M       11.5 h
    upernet_internimage_b           50.8 / 51.3      512     128 M       12 h
    upernet_internimage_l           53.9 / 54.1      640     256 M       19 h
    upernet_internimage_xl          55.0 / 55.3      640     368 M       22 h
    upernet_internimage_h           59.9 / 60.3      896    1120 M       48 h
    upernet_internimage_g           not published    896    3113 M
    upernet_deit_adapter_t          42.6 / 43.6      512      36 M
    upernet_deit_adapter_s          46.2 / 47.1      512      58 M
    upernet_deit_adapter_b          48.8 / 49.7      512     134 M
    upernet_deit_adapter_light_b    not published    512     126 M
    upernet_augreg_adapter_t        43.9 / 44.8      512      36 M
    upernet_augreg_adapter_b        51.9 / 52.5      512     134 M
    upernet_augreg_adapter_l        53.4 / 54.4      512     364 M
    upernet_uniperceiver_adapter_l  55.0 / 55.4      512     364 M
    upernet_beit_adapter_l          58.0 / 58.4      640     451 M
    upernet_beit_l                  not published    512     440 M

    python -m jaxseg.main --config configs/ade20k.py:upernet_internimage_t \\
        --config.data.root=ADEChallengeData2016 --workdir RUN
"""

from configs import common, internimage, vit_adapter

INTERNIMAGE_CROPS = {"t": 512, "s": 512, "b": 512, "l": 640, "xl": 640, "h": 896, "g": 896}


def data(crop, longest):
    """Square crops of images within `crop` × `longest` pixels, either way round."""
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


VARIANTS = {
    **{
        f"upernet_internimage_{size}": {**internimage.upernet(size), "data": data(crop, 4 * crop)}
        for size, crop in INTERNIMAGE_CROPS.items()
    },
    **{
        f"upernet_{name}": vit_adapter.upernet(
            name, num_classes=150, data=data(640 if name == "beit_adapter_l" else 512, 2048)
        )
        for name in vit_adapter.BACKBONES
    },
}


def get_config(variant="upernet_internimage_t"):
    return common.recipe(variant, VARIANTS)
