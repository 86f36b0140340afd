"""Trains a small model for some steps on random images."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models.segmentation_model import build_model
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state
from jaxseg.training.step import make_train_step


def steps(config, count):
    """The states before and after so many steps; each part of a batch has two images."""
    model = build_model(config.model)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    before = jax.jit(lambda: init_state(config, model, optimizer))()
    step, state = jax.jit(make_train_step(config, model, optimizer)), before
    rng = np.random.default_rng(0)
    shape = (2 * config.optim.accumulation, *config.data.crop_hw, 3)
    for _ in range(count):
        image = rng.standard_normal(shape).astype(np.float32)
        label = rng.integers(0, 19, image.shape[:3]).astype(np.int32)
        state, _ = step(state, {"image": jnp.asarray(image), "label": jnp.asarray(label)})
    return before, state
