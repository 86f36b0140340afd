"""The weights behind the recorded numbers: any implementation can make them, from names alone."""

import math
import zlib

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a tensor of the original, float32, from its full PyTorch name and its shape.

    Seeded by the name's checksum; scaled by what the name says the tensor is, so that activations
    keep a sensible size through any depth.
    """
    random = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    normal = random.standard_normal(shape, dtype=np.float32)
    if leaf.startswith("gamma"):  # layer scale
        return 0.5 + 0.1 * normal
    if leaf.endswith("weight") and len(shape) > 1:  # linear layers, convolutions, embeddings
        return normal / np.float32(math.sqrt(math.prod(shape[1:])))
    if leaf == "weight":  # scales of norms
        return 1.0 + 0.1 * normal
    return 0.02 * normal  # biases, tokens, position tables, running means
