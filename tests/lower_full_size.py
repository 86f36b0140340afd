"""Lowers the train step of a recipe for 16 devices, from shapes alone: python lower_full_size.py
CONFIG PLATFORM. Prints what the program is like as JSON."""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=16"

import jax
import numpy as np

from jaxseg import config_files, optim, parallel, train_step
from jaxseg.models import segmentor


def main(name, platform):
    overrides = ["--config.model.dtype=bfloat16", "--config.mesh.data=1", "--config.mesh.fsdp=16"]
    config = config_files.load(name, overrides)
    model = segmentor.build(config.model)
    optimizer = optim.make(config.optim, config.model.backbone, config.steps)
    mesh = parallel.make_mesh(config.mesh)
    state = jax.eval_shape(lambda: train_step.init_state(config, model, optimizer))
    shardings = parallel.infer(state, config.sharding, mesh)
    state = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), state, shardings)
    over_devices = jax.NamedSharding(mesh, parallel.BATCH)
    hw = (config.batch_size, *config.data.crop_hw)
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
        text = step.trace(state, batch).lower(lowering_platforms=(platform,)).as_text()

    def share(leaf):
        return np.prod(leaf.sharding.shard_shape(leaf.shape))

    leaves = jax.tree.leaves(state.params)
    report = {
        "batch": list(hw),
        "parameters": sum(leaf.size for leaf in leaves),
        "parameters_per_device": int(sum(map(share, leaves))),
        "partitions": "mhlo.num_partitions = 16" in text,
        "callback": "callback" in text,
        "characters": len(text),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
