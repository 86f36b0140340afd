"""Times self-attention with and without BEiT's bias, forward and with gradients, by implementation.

    python benchmarks/attention.py [--batch IMAGES] [--shapes NAME …] [--rounds 10] [--json FILE]

The lengths are those of the published models: ViT-B on 512 × 512 pixels, BEiT-L on 640 × 640. The
operator of the models is compared with `jax.nn.dot_product_attention` and, on GPUs, with cuDNN's
kernel. These two get the bias of every pair, made from the table. With a bias, cuDNN needs an even
number of tokens, so they are padded with keys that no query attends to. All implementations run in
turns in one process. The result is the minimum of several times, as JSON.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from jaxseg.reporting.manifest import versions
from pallas_kernels.relative_positions import bias_of_pairs, table_rows
from pallas_kernels.xla_attention import merge_heads, split_heads

# Tokens, heads, and the grid of patches if there is a bias; heads have 64 channels.
SHAPES = {"vit_b_512": (1024, 12, None), "beit_l_640": (1601, 16, (40, 40))}
CHANNELS = 64


def by_jax(qkv, table=None, *, num_heads, grid, implementation=None):
    """Runs an implementation of `jax.nn.dot_product_attention`."""
    tokens = qkv.shape[1]
    bias = None
    if table is not None:
        fill = tokens % 2
        bias = bias_of_pairs(table, grid)[None].astype(qkv.dtype)
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, fill), (0, 0)))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, fill)), constant_values=-1e9)
        qkv = jnp.pad(qkv, ((0, 0), (0, fill), (0, 0)))
    query, key, value = split_heads(qkv, num_heads)
    attended = jax.nn.dot_product_attention(
        query, key, value, bias=bias, implementation=implementation
    )
    return merge_heads(attended)[:, :tokens]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1, metavar="IMAGES")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    measured = options.batch, options.rounds
    gpu = jax.default_backend() == "gpu"
    implementations = {"jaxseg": pallas_kernels.self_attention, "jax.nn": by_jax}
    if gpu:
        implementations["cudnn"] = functools.partial(by_jax, implementation="cudnn")
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    device = jax.devices()[0]
    result = {
        "attention_milliseconds": {
            name: times(implementations, *measured, dtype, *SHAPES[name]) for name in options.shapes
        },
        "batch": options.batch,
        "dtype": jnp.dtype(dtype).name,
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def times(implementations, batch, rounds, dtype, tokens, heads, grid):
    """Returns the minimum time of each implementation, in milliseconds.

    Each one is timed forward and with all gradients.
    """
    random = np.random.default_rng(0)
    qkv = random.standard_normal((batch, tokens, 3 * heads * CHANNELS))
    arrays = [jnp.asarray(qkv, dtype)]
    if grid:
        table = random.standard_normal((table_rows(grid), heads))
        arrays.append(jnp.asarray(table, jnp.float32))
    functions = {}
    for name, implementation in implementations.items():
        function = functools.partial(implementation, num_heads=heads, grid=grid)
        functions[f"{name}, forward"] = jax.jit(function)
        functions[f"{name}, gradients"] = jax.jit(
            jax.grad(
                lambda *arrays, function=function: function(*arrays).astype(jnp.float32).sum(),
                argnums=range(len(arrays)),
            )
        )
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            if turn:  # the first call compiles
                best[name] = min(best[name], time.perf_counter() - started)
    return {name: round(1e3 * seconds, 2) for name, seconds in best.items()}


if __name__ == "__main__":
    main()
