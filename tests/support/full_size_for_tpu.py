"""Compiles the train step of a recipe at its full size for 16 chips of TPU v5e that are not here:
python full_size_for_tpu.py CONFIG FSDP. Prints as JSON what a chip holds, in bytes, and the numbers
of elements of all arrays that it sends."""

import json
import math
import os
import sys

os.environ |= {
    "JAX_OPTIMIZATION_LEVEL": "O1",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

import jax

from jaxseg.aot.programs import compile_traced, topology_devices, trace_train_step
from jaxseg.config import load_config
from jaxseg.distributed.sharding import make_mesh


def main(name, fsdp):
    overrides = ["--config.model.dtype=bfloat16", f"--config.mesh.fsdp={fsdp}"]
    config = load_config(name, overrides)
    _, devices = topology_devices("v5e:4x4")
    mesh = make_mesh(config.mesh, devices)
    traced, state, images = trace_train_step(config, mesh)
    program = compile_traced(traced, mesh.size, "v5e")
    sent = {}
    for collective in program.collectives:
        found = sent.setdefault(collective.kind, [])
        found.extend(math.prod(shape) for _, shape in collective.shapes)
    leaves, weights = jax.tree.leaves(state), jax.tree.leaves(state.params)
    report = {
        "sent": sent,
        "needed_bytes": program.needed_bytes,
        "argument_bytes": program.argument_bytes,
        "weights": [leaf.size for leaf in weights],
        "parts": [part_of(leaf) for leaf in weights],
        "state_bytes": sum(part_of(leaf) * leaf.dtype.itemsize for leaf in leaves),
        "batch_bytes": math.prod(images.shape) * 4 * 4 // 3 // mesh.size,  # with the labels
    }
    print(json.dumps(report))


def part_of(leaf):
    """The elements that one chip holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


if __name__ == "__main__":
    main(*sys.argv[1:])
