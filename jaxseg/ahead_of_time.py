"""The train step of a recipe for devices that need not be there, from shapes alone."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import optim, parallel, train_step
from jaxseg.models import segmentor


def trace_train_step(
    config: ConfigDict, devices: Sequence[jax.Device], batch_size: int
) -> tuple[jax.stages.Traced, Any]:
    """The traced step, sharded over `config.mesh` of the devices, and the abstract state it takes.

    Nothing is computed, and nothing of the model's size is held.
    """
    model = segmentor.build(config.model)
    optimizer = optim.make(config.optim, config.model.backbone, config.steps)
    mesh = parallel.make_mesh(config.mesh, devices)
    state = jax.eval_shape(lambda: train_step.init_state(config, model, optimizer))
    shardings = parallel.infer(state, config.sharding, mesh)
    state = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), state, shardings)
    over_devices = jax.NamedSharding(mesh, parallel.BATCH)
    hw = (batch_size, *config.data.crop_hw)
    batch = {
        "image": jax.ShapeDtypeStruct((*hw, 3), np.float32, sharding=over_devices),
        "label": jax.ShapeDtypeStruct(hw, np.int32, sharding=over_devices),
    }
    step = jax.jit(
        train_step.make_train_step(config, model, optimizer),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    with jax.set_mesh(mesh):
        return step.trace(state, batch), state
