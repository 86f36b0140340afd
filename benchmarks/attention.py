"""Times attention with and without a bias, forward and with gradients, by implementation.

python benchmarks/attention.py

The lengths are those of the published models: ViT-B on 512 × 512 pixels, BEiT-L on 640 × 640. The
implementation of the models is compared with `jax.nn.dot_product_attention` and, on GPUs, with
cuDNN's kernel. With a bias, that kernel needs an even number of tokens, so they are padded with
keys that no query attends to. All implementations run in turns in one process. The result is the
minimum of several times, as JSON.
"""

import argparse
import datetime
import json
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops.attention import attend
from jaxseg.reporting.manifest import versions

SHAPES = {"vit_b_512": (1024, 12, 64, False), "beit_l_640": (1601, 16, 64, True)}
ROUNDS = 10


def cudnn(query, key, value, bias):
    """Runs cuDNN's kernel; with a bias, tokens are padded to an even number."""
    fill = query.shape[1] % 2 if bias is not None else 0
    if fill:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, fill), (0, 0)))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, fill)), constant_values=-1e9)
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))) for x in (query, key, value)
        )
    mixed = jax.nn.dot_product_attention(query, key, value, bias=bias, implementation="cudnn")
    return mixed[:, : mixed.shape[1] - fill]


def by_jax(query, key, value, bias):
    return jax.nn.dot_product_attention(query, key, value, bias=bias)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1)
    batch = parser.parse_args().batch
    gpu = jax.default_backend() == "gpu"
    implementations = {"jaxseg": attend, "jax.nn": by_jax} | ({"cudnn": cudnn} if gpu else {})
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    device = jax.devices()[0]
    result = {
        "milliseconds": {
            name: times(implementations, batch, dtype, *shape) for name, shape in SHAPES.items()
        },
        "batch": batch,
        "dtype": jnp.dtype(dtype).name,
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    print(json.dumps(result, indent=1))


def times(implementations, batch, dtype, tokens, heads, width, biased):
    """Returns the minimum time of each implementation, in milliseconds.

    Each one is timed forward and with all gradients.
    """
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape), dtype)

    arrays = [draw(batch, tokens, heads, width) for _ in range(3)]
    arrays.append(draw(1, heads, tokens, tokens) if biased else None)
    functions = {}
    for name, function in implementations.items():
        functions[f"{name}, forward"] = jax.jit(function)
        functions[f"{name}, gradients"] = jax.jit(
            jax.grad(
                lambda *arrays, function=function: function(*arrays).astype(jnp.float32).sum(),
                argnums=range(4 if biased else 3),
            )
        )
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            if turn:  # the first call compiles
                best[name] = min(best[name], time.perf_counter() - started)
    return {name: round(1e3 * seconds, 2) for name, seconds in best.items()}


if __name__ == "__main__":
    main()
