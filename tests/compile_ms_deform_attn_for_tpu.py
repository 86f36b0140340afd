"""Compiles the TPU kernels of multi-scale deformable attention at the sizes of the published models
with the real compiler, without a TPU: python compile_ms_deform_attn_for_tpu.py CHIP [CASE …].
Prints a line of JSON per program. Needs libtpu (pip install "jax[tpu]")."""

import json
import os
import sys
import time

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from pallas_kernels import tpu_ms_deform_attn

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}


def pyramid(height, width):
    """The levels at 1/8, 1/16 and 1/32 of an image of height × width at 1/16."""
    return ((2 * height, 2 * width), (height, width), (height // 2, width // 2))


def pixels(levels):
    return sum(height * width for height, width in levels)


def cases():
    """name: (levels, queries, heads, channels per head, backward too)."""
    found = {}

    def add_adapter(model, side, heads, depth):
        grid = (side // 16, side // 16)
        levels = pyramid(*grid)
        found[f"injector_{model}_{side}"] = levels, pixels((grid,)), heads, depth, True
        found[f"extractor_{model}_{side}"] = (grid,), pixels(levels), heads, depth, True

    def add_decoder(height, width, heads, backward):
        levels = pyramid(height // 16, width // 16)[::-1]
        name = f"decoder_{heads}_{height}x{width}"
        found[name] = levels, pixels(levels), heads, 32, backward

    for side in (896, 640, 512, 480, 128):
        add_adapter("L", side, 16, 32)
        add_decoder(side, side, 32, True)
    for side in (896, 480):
        add_adapter("S", side, 6, 64)
    # The kernels are the same for other numbers of heads; one size shows it.
    add_adapter("T", 512, 6, 32)
    add_adapter("B", 512, 12, 32)
    add_decoder(896, 896, 8, True)
    add_decoder(512, 2048, 32, False)
    add_decoder(896, 3584, 32, False)
    return found


def compile_seconds(chip, levels, queries, heads, depth, backward, dtype):
    device = topologies.get_topology_desc(CHIPS[chip], platform="tpu").devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    where = jax.NamedSharding(mesh, jax.P())

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def forward(value, locations, attention):
        return tpu_ms_deform_attn.ms_deform_attn(value, levels, locations, attention)

    def both(value, locations, attention, cotangent):
        output, transpose = jax.vjp(forward, value, locations, attention)
        return output, transpose(cotangent)

    sampled = (1, queries, heads, len(levels), 4)
    arguments = [
        array(1, pixels(levels), heads, depth, dtype=dtype),
        array(*sampled, 2),
        array(*sampled),
    ]
    if backward:
        arguments.append(array(1, queries, heads * depth, dtype=dtype))
    start = time.time()
    compiled = jax.jit(both if backward else forward).lower(*arguments).compile()
    assert "ms_deform_attn_forward" in compiled.as_text()
    return time.time() - start


def main(chip, *names):
    found = cases()
    for name in names or found:
        # The largest sizes need the most memory; at the others float32 shows nothing new.
        for dtype in (jnp.bfloat16, jnp.float32) if "896" in name else (jnp.bfloat16,):
            seconds = compile_seconds(chip, *found[name], dtype)
            report = {"chip": chip, "case": name, "dtype": jnp.dtype(dtype).name}
            print(json.dumps(report | {"seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
