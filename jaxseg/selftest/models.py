"""Compares a small model of each family on this device with the numbers in `numbers.json`."""

import json
import math
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxseg import parameter_paths
from jaxseg.models.segmentation_model import (
    SegmentationModel,
    Variables,
    apply_model,
    build_model,
    variable_shapes,
)
from jaxseg.recipes.base import BASE
from jaxseg.selftest.check import Errors, compiled, relative_error
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import TrainState
from jaxseg.training.step import make_train_step

NUMBERS = pathlib.Path(__file__).with_name("numbers.json")
CLASSES = 5
IMAGE_HW = (64, 64)
# Tolerances for whole models in float32. The differences of their operators add up over the layers.
MODEL = {"logits": 1e-4, "loss": 1e-5, "gradient_norm": 1e-3, "loss_after_a_step": 1e-3}

SEGFORMER = {"kind": "segformer", "num_classes": CLASSES, "channels": 16, "dropout": 0.0}
MASK2FORMER = {
    "kind": "mask2former",
    "num_classes": CLASSES,
    "channels": 16,
    "num_queries": 8,
    "num_heads": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_ffn_dim": 24,
    "norm_groups": 4,
}
ADAPTER = {
    "embed_dim": 12,
    "depth": 1,
    "num_heads": 3,
    "interaction_indexes": ((0, 0),),
    "deform_num_heads": 3,
    "conv_inplane": 4,
    "add_vit_feature": False,  # it needs four interactions
    "extra_extractors": 1,
}
INTERNIMAGE = {
    "kind": "internimage",
    "channels": 8,
    "depths": (1, 1),
    "groups": (1, 2),
    "layer_scale": 1.0,
}
MODELS = {
    "InternImage, SegFormerHead": (INTERNIMAGE, SEGFORMER),
    "ViT-Adapter, SegFormerHead": (
        {"kind": "vit_adapter", **ADAPTER, "pretrain_grid": 4},
        SEGFORMER,
    ),
    "BEiT-Adapter, Mask2Former": (
        {"kind": "beit_adapter", **ADAPTER, "window": (4, 4)},
        MASK2FORMER,
    ),
}


def config_of(backbone: dict[str, Any], head: dict[str, Any]) -> ConfigDict:
    """Returns a config for training a small model in float32.

    Args:
      backbone: the settings of the backbone.
      head: the settings of the decode head.
    """
    return ConfigDict(
        {
            "seed": 0,
            "steps": 10,
            "sharding": (),
            "model": {
                "dtype": "float32",
                "backbone": backbone,
                "decode_head": head,
                "auxiliary_head": None,
            },
            "loss": {
                **BASE["loss"],
                "mask2former": {"num_points": 64, "max_targets": CLASSES},
            },
            "optim": {
                "lr": 1e-3,
                "layer_decay": 1.0,
                "custom_keys": (),
                "betas": (0.9, 0.999),
                "weight_decay": 0.05,
                "warmup_steps": 0,
                "warmup_ratio": 1.0,
                "schedule": "polynomial",
                "power": 1.0,
                "clip_norm": 1.0,
                "accumulation": 1,
                "freeze": "",
                "frozen_dtype": "float32",
                "lora": BASE["optim"]["lora"],
                "ema_decay": 0.0,
            },
        }
    )


def weights_of(path: str, shape: Sequence[int]) -> np.ndarray:
    """Returns random weights of a parameter, seeded by its path: the same on every machine."""
    random = np.random.Generator(np.random.Philox(zlib.crc32(path.encode())))
    normal = random.standard_normal(shape, dtype=np.float32)
    leaf = path.rpartition("/")[2]
    if leaf == "var":
        return 1 + np.abs(normal)
    if leaf in ("scale", "gamma1", "gamma2"):
        return 1 + 0.1 * normal
    if len(shape) > 1:
        return normal / np.float32(math.sqrt(math.prod(shape[:-1])))
    return 0.02 * normal


def filled(model: SegmentationModel) -> Variables:
    """Returns the variables of a model, filled by `weights_of`."""
    shapes = parameter_paths.shapes(variable_shapes(model))
    arrays = {path: jnp.asarray(weights_of(path, shape)) for path, shape in shapes.items()}
    return {"batch_stats": {}} | parameter_paths.nested(arrays)


def model_numbers(name: str) -> dict[str, list[float]]:
    """Computes the numbers of a small model of `MODELS` on this device.

    Returns:
      A regular sample of the logits in evaluation, the loss, the gradient norm, and the loss after
      one update.
    """
    config = config_of(*MODELS[name])
    model = build_model(config.model)
    variables = filled(model)
    random = np.random.default_rng(0)
    label = random.integers(0, CLASSES, (2, 4, 4)).repeat(16, axis=1).repeat(16, axis=2)
    noise = random.standard_normal((2, *IMAGE_HW, 3))
    image = jnp.asarray(noise + label[..., None] / 2, jnp.float32)

    def evaluate(variables, image):
        return apply_model(model, variables, image)[0].logits

    logits = np.asarray(compiled(evaluate)(variables, image)).ravel()
    with jax.numpy_dtype_promotion("standard"):  # optax takes powers of Python numbers
        optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
        opt_state = optimizer.init(variables["params"])
        state = TrainState(jnp.zeros((), jnp.int32), **variables, opt_state=opt_state)
        step = compiled(make_train_step(config, model, optimizer))
        batch = {"image": image, "label": jnp.asarray(label, jnp.int32)}
        state, first = step(state, batch)
        # Step 0 again, with the same random numbers, so that only the weights differ.
        _, second = step(state.replace(step=jnp.zeros((), jnp.int32)), batch)
    return {
        "logits": [float(x) for x in logits[:: max(1, len(logits) // 64)]],
        "loss": [float(first["loss"])],
        "gradient_norm": [float(first["gradient_norm"])],
        "loss_after_a_step": [float(second["loss"])],
    }


def model_errors(name: str) -> Errors:
    """Returns the errors of a small model against the numbers that come with the package."""
    expected = json.loads(NUMBERS.read_text())[name]
    found = model_numbers(name)
    return {key: (relative_error(found[key], expected[key]), MODEL[key]) for key in MODEL}


def write_numbers(file: pathlib.Path):
    """Writes the numbers that `model_errors` compares with."""
    file.write_text(json.dumps({name: model_numbers(name) for name in MODELS}, indent=1) + "\n")
