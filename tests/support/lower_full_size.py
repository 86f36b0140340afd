"""Lowers the train step of a recipe for 16 devices, from shapes alone: python lower_full_size.py
CONFIG PLATFORM. Prints what the program is like as JSON."""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=16"

import jax
import numpy as np

from jaxseg.aot.programs import trace_train_step
from jaxseg.config import load_config
from jaxseg.distributed.sharding import make_mesh


def main(name, platform):
    overrides = ["--config.model.dtype=bfloat16", "--config.mesh.data=1", "--config.mesh.fsdp=16"]
    config = load_config(name, overrides)
    mesh = make_mesh(config.mesh)
    traced, state, _ = trace_train_step(config, mesh)
    text = traced.lower(lowering_platforms=(platform,)).as_text()

    def share(leaf):
        return np.prod(leaf.sharding.shard_shape(leaf.shape))

    leaves = jax.tree.leaves(state.params)
    report = {
        "batch": [config.batch_size, *config.data.crop_hw],
        "parameters": sum(leaf.size for leaf in leaves),
        "parameters_per_device": int(sum(map(share, leaves))),
        "partitions": "mhlo.num_partitions = 16" in text,
        "callback": "callback" in text,
        "characters": len(text),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
