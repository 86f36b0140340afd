"""Compiles the operators with their gradients, split over 16 chips of TPU v5e that are not here.
Prints the collectives of each program as JSON."""

import functools
import json
import os
import re
from collections import Counter

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

import pallas_kernels
from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh, map_over_batch
from pallas_kernels.relative_positions import table_rows

IMAGES, HW, GROUPS, CHANNELS = 32, (8, 128), 8, 4
LEVELS = ((8, 8), (4, 4))
GRID, HEADS, HEAD_CHANNELS = (12, 32), 2, 64
TOKENS = 1 + GRID[0] * GRID[1]
COLLECTIVES = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def dcnv3(value, offset, mask):
    sample = functools.partial(pallas_kernels.dcnv3, kernel_size=3, stride=1, padding=1, dilation=1)
    return map_over_batch(functools.partial(sample, groups=GROUPS, offset_scale=1.0))(
        value, offset, mask
    )


def ms_deform_attn(value, locations, weights):
    def sample(value, locations, weights):
        return pallas_kernels.ms_deform_attn(value, LEVELS, locations, weights)

    return map_over_batch(sample)(value, locations, weights)


def self_attention(qkv, table):
    attend = functools.partial(pallas_kernels.self_attention, num_heads=HEADS, grid=GRID)
    return map_over_batch(attend, num_replicated=1)(qkv, table)


def conv3x3(x, kernel):
    return map_over_batch(pallas_kernels.conv3x3, num_replicated=1)(x, kernel)


# Shapes of arrays that are split, without the batch, and of an array that is not; their type.
CALLS = {
    dcnv3: ([(*HW, GROUPS * CHANNELS), (*HW, GROUPS * 18), (*HW, GROUPS * 9)], [], jnp.float32),
    ms_deform_attn: ([(80, 4, 8), (64, 4, 2, 4, 2), (64, 4, 2, 4)], [], jnp.float32),
    self_attention: (
        [(TOKENS, 3 * HEADS * HEAD_CHANNELS)],
        [(table_rows(GRID), HEADS)],
        jnp.float32,
    ),
    conv3x3: ([(*HW, 128)], [(3, 3, 128, 256)], jnp.bfloat16),
}


def main():
    devices = topologies.get_topology_desc("v5e:4x4", platform="tpu").devices
    mesh = make_mesh({"data": 4, "fsdp": 4}, devices)
    split, whole = (jax.NamedSharding(mesh, spec) for spec in (BATCH_SPEC, P()))
    report = {}
    for operator, (shapes, parameters, dtype) in CALLS.items():

        def loss(*arguments, operator=operator):
            return jnp.sum(operator(*arguments).astype(jnp.float32) ** 2)

        arrays = [jax.ShapeDtypeStruct((IMAGES, *shape), dtype, sharding=split) for shape in shapes]
        arrays += [jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape in parameters]
        gradients = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays)))))
        with jax.set_mesh(mesh):
            compiled = gradients.lower(*arrays).compile()
        text = compiled.as_text()
        report[operator.__name__] = {
            "kernels": text.count("tpu_custom_call"),
            "collectives": Counter(re.findall(COLLECTIVES, text)),
            "pairs": f"{TOKENS},{TOKENS}" in text,  # an array of all pairs of tokens
            "gradients": [str(sharding.spec) for sharding in compiled.output_shardings[1]],
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
