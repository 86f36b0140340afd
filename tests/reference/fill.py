"""Deterministic weights from parameter names, so that two implementations can be
filled alike without shipping gigabytes: fill(name, shape) -> float32 array.

`name` is the parameter's full name in the PyTorch state dict."""

import math
import zlib

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    z = rng.standard_normal(shape, dtype=np.float32)
    if leaf.startswith("gamma"):  # layer scale
        return 0.5 + 0.1 * z
    if len(shape) >= 2 and leaf.endswith("weight"):  # linear, conv, embedding, in_proj
        return z / np.float32(math.sqrt(math.prod(shape[1:])))
    if leaf == "weight":  # norm scale
        return 1.0 + 0.1 * z
    return 0.02 * z  # biases, tokens, position tables, running means
