"""Trains InternImage on NYU Depth v2, without using the depth.

NYU Depth v2 has 795 training images, 654 test images and 40 classes. The published model is
mask2former_internimage_h. It has an mIoU of 67.1 at a single scale and 68.1 at several, and 1094 M
parameters.

    python -m jaxseg.main --config configs/nyu_depth_v2.py:mask2former_internimage_h \\
        --config.data.root=nyu_depth_v2 --workdir RUN
"""

from jaxseg.recipes import base, internimage

DATA = {
    "dataset": "nyu_depth_v2",
    "root": "data/nyu_depth_v2",
    "train_split": "train",
    "val_split": "test",
    "scale_wh": (2048, 512),
    "crop_hw": (480, 480),
    "test_scale_wh": (640, 480),
    "test_multiple": 32,
}

VARIANTS = {
    "mask2former_internimage_h": {
        **internimage.mask2former(40, clip_norm=0.0),
        "steps": 40_000,
        "data": DATA,
        "eval": {"every_steps": 2_000},
    }
}


def get_config(variant="mask2former_internimage_h"):
    return base.recipe(variant, VARIANTS)
