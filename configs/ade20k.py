"""InternImage on ADE20K (20210 training images, 2000 for validation, 150 classes).

Published (H on 16 A100 GPUs, the others on 8):

    variant                 mIoU ss / ms     crop   parameters   training
    upernet_internimage_t   47.9 / 48.1      512      59 M       10.5 h
    upernet_internimage_s   50.1 / 50.9      512      80 M       11.5 h
    upernet_internimage_b   50.8 / 51.3      512     128 M       12 h
    upernet_internimage_l   53.9 / 54.1      640     256 M       19 h
    upernet_internimage_xl  55.0 / 55.3      640     368 M       22 h
    upernet_internimage_h   59.9 / 60.3      896    1120 M       48 h
    upernet_internimage_g   not published    896    3113 M

    python -m jaxseg.main --config configs/ade20k.py:upernet_internimage_t \\
        --config.data.root=ADEChallengeData2016 --workdir RUN
"""

from configs import common

CROPS = {"t": 512, "s": 512, "b": 512, "l": 640, "xl": 640, "h": 896, "g": 896}


def data(crop):
    """Square crops; the longer side of an image may be four times the shorter one."""
    return {
        "dataset": "ade20k",
        "root": "data/ADEChallengeData2016",
        "train_split": "training",
        "val_split": "validation",
        "scale_wh": (4 * crop, crop),
        "crop_hw": (crop, crop),
        "test_scale_wh": (4 * crop, crop),
        "test_multiple": 32,
    }


VARIANTS = {
    f"upernet_internimage_{size}": {**common.upernet_internimage(size), "data": data(crop)}
    for size, crop in CROPS.items()
}


def get_config(variant="upernet_internimage_t"):
    return common.recipe(variant, VARIANTS)
