"""Makes the weights behind the recorded numbers from the names of the tensors.

Names are all that is needed, so any implementation can make the same weights.
"""

import math
import zlib

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the values of a tensor of the original, from its full PyTorch name and its shape.

    The checksum of the name is the seed. The scale depends on the kind of tensor, which the name
    gives, so that activations keep a sensible size at any depth.

    Returns:
      A float32 array; for `num_batches_tracked`, int64 zeros.
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
