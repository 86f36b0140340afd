"""A model and config small enough to be compiled and trained in seconds."""

import functools

import jax
import ml_collections

from jaxseg.models.segmentation_model import build_model
from jaxseg.recipes import base, internimage
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state


def tiny_config(**changes):
    """A UperNet on a four-stage InternImage with 8 channels; `changes` are "a.b" keys."""
    backbone = internimage.backbone("t") | {
        "channels": 8,
        "depths": (1, 1, 1, 1),
        "groups": (1, 2, 4, 8),
    }
    model = base.upernet(backbone, num_classes=19)
    model["dtype"] = "float32"
    model["decode_head"]["channels"] = model["auxiliary_head"]["channels"] = 16
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
    config = base.recipe("tiny", {"tiny": settings})
    config.update_from_flattened_dict(changes)
    return ml_collections.ConfigDict(config)


def smallest_config():
    """What compiles quickest of all that has batch norm: SegformerHead on four blocks of BEiT."""
    backbone = {"kind": "beit", "embed_dim": 16, "depth": 4, "num_heads": 2, "window": (4, 4)}
    backbone["out_indices"] = (0, 1, 2, 3)
    config = tiny_config()
    config.model = ml_collections.ConfigDict(base.segformer(backbone, num_classes=19))
    config.model.dtype = "float32"
    config.model.decode_head.channels = 16
    config.data.test_multiple = 32
    return config


@functools.cache
def initial_state(of_model=tiny_config):
    config = of_model()
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    return jax.jit(lambda: init_state(config, build_model(config.model), optimizer))()
