"""A model and config small enough to be compiled and trained in seconds."""

import ml_collections

from configs import common, internimage


def tiny_config(head="upernet", **changes):
    """A UperNet (or segformer) on an InternImage of 8 channels; `changes` are "a.b" keys."""
    backbone = internimage.backbone("t") | {
        "channels": 8,
        "depths": (1, 1, 1, 1),
        "groups": (1, 2, 4, 8),
    }
    model = getattr(common, head)(backbone, num_classes=19)
    model["dtype"] = "float32"
    for part in ("decode_head", "auxiliary_head"):
        if model[part]:
            model[part]["channels"] = 16
    settings = {
        "model": model,
        "steps": 10,
        "batch_size": 8,
        "data": {
            "scale_wh": (128, 64),
            "crop_hw": (64, 64),
            "test_scale_wh": (128, 64),
            "workers": 0,
        },
        "optim": {"lr": 1e-3, "warmup_steps": 4},
        "eval": {"every_steps": 5, "pictures": 1},
        "checkpoint": {"every_steps": 2},
        "log_steps": 1,
    }
    config = common.recipe("tiny", {"tiny": settings})
    config.update_from_flattened_dict(changes)
    return ml_collections.ConfigDict(config)
