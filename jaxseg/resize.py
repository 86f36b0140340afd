"""Linear resampling of feature maps as matrix products; what heads, losses and inference share."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def interpolation_matrix(size: int, out_size: int) -> np.ndarray:
    """The [out_size, size] matrix of linear interpolation along one axis.

    Half-pixel centres (align_corners=False), edges clamped, no antialiasing when shrinking.
    """
    # Positions in float32, as PyTorch has them; the class map can depend on their rounding.
    scale, half = np.float32(size) / np.float32(out_size), np.float32(0.5)
    position = np.maximum(scale * (np.arange(out_size, dtype=np.float32) + half) - half, 0)
    lower = np.minimum(np.floor(position).astype(int), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    fraction = position - lower
    matrix = np.zeros((out_size, size))
    np.add.at(matrix, (np.arange(out_size), lower), 1 - fraction)
    np.add.at(matrix, (np.arange(out_size), upper), fraction)
    return matrix


def along_height(matrix: np.ndarray, x: Array) -> Array:
    matrix = jnp.asarray(matrix, x.dtype)
    return jnp.einsum("Hh,bhwc->bHwc", matrix, x, precision=lax.Precision.HIGHEST)


def along_width(matrix: np.ndarray, x: Array) -> Array:
    matrix = jnp.asarray(matrix, x.dtype)
    return jnp.einsum("Ww,bhwc->bhWc", matrix, x, precision=lax.Precision.HIGHEST)


def resize_bilinear(x: Float[Array, "b h w c"], hw: Sequence[int]) -> Float[Array, "b H W c"]:
    """Bilinear resize as every head of the reference does it (see `interpolation_matrix`)."""
    for axis, along in ((1, along_height), (2, along_width)):
        if x.shape[axis] != hw[axis - 1]:
            x = along(interpolation_matrix(x.shape[axis], hw[axis - 1]), x)
    return x
