"""Trains a small InternImage with UPerNet on synthetic street scenes, in minutes on a CPU.

    python -m jaxseg.data.synthetic --output data/street_scenes
    python -m jaxseg.main --config configs/demo.py

`make demo` does both. The scenes have exactly the folder layout of Cityscapes, with raw label ids
and all 19 classes.
"""

from jaxseg.recipes import base, internimage

BACKBONE = {
    **internimage.backbone("t"),
    "channels": 32,
    "depths": (1, 1, 2, 1),
    "groups": (2, 4, 8, 16),
    "drop_path": 0.0,
}
MODEL = base.upernet(BACKBONE, num_classes=19)
MODEL["decode_head"]["channels"] = MODEL["auxiliary_head"]["channels"] = 48

VARIANTS = {
    "demo": {
        "steps": 1500,
        "batch_size": 4,
        "model": MODEL,
        "data": {
            "root": "data/street_scenes",
            "scale_wh": (512, 256),
            "ratio_range": (0.75, 1.5),
            "crop_hw": (128, 256),
            "test_scale_wh": (512, 256),
            "workers": 1,
        },
        "optim": {"lr": 4e-3, "warmup_steps": 50, "clip_norm": 1.0},
        "checkpoint": {"every_steps": 500},
        "eval": {"every_steps": 1500, "pictures": 8},
        "log_steps": 50,
    },
}


def get_config(variant="demo"):
    return base.recipe(variant, VARIANTS)
