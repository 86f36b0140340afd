"""Resampling as matrix products: of feature maps, for heads, losses and inference; and of position
tables."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def interpolation_matrix(size: int, out_size: int) -> np.ndarray:
    """The [out_size, size] matrix of linear interpolation along one axis, see
    `interpolation_taps`."""
    lower, upper, fraction = interpolation_taps(size, out_size)
    matrix = np.zeros((out_size, size))
    np.add.at(matrix, (np.arange(out_size), lower), 1 - fraction)
    np.add.at(matrix, (np.arange(out_size), upper), fraction)
    return matrix


def interpolation_taps(size: int, out_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every place of the output its two neighbors, and the weight of the second.

    Half-pixel centers (align_corners=False), edges clamped, no antialiasing when shrinking.
    """
    position = np.maximum(_positions(size, out_size), 0)
    lower = np.minimum(np.floor(position).astype(int), size - 1)
    return lower, np.minimum(lower + 1, size - 1), position - lower


def cubic_matrix(size: int, out_size: int) -> np.ndarray:
    """The [out_size, size] matrix of cubic convolution along one axis, as PyTorch's "bicubic".

    Half-pixel centers (align_corners=False), the edge repeated beyond itself, no antialiasing when
    shrinking. Keys, "Cubic convolution interpolation", 1981, with a = −0.75.
    """
    position = _positions(size, out_size)
    lower = np.floor(position).astype(int)
    matrix = np.zeros((out_size, size))
    for neighbor in (lower - 1, lower, lower + 1, lower + 2):
        weight = _cubic_kernel(np.abs(position - neighbor))
        np.add.at(matrix, (np.arange(out_size), np.clip(neighbor, 0, size - 1)), weight)
    return matrix


def _positions(size, out_size):
    """Where the centers of the output's pixels lie among those of the input."""
    # As PyTorch has them: the scale in float32, and one rounding to float32 after a fused
    # multiply-subtract; the class map can depend on it.
    scale = np.float64(np.float32(size) / np.float32(out_size))
    return (scale * (np.arange(out_size) + 0.5) - 0.5).astype(np.float32)


def _cubic_kernel(distance, a=-0.75):
    """The weight of a neighbor at a distance from 0 to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def along_height(matrix: np.ndarray, x: Array) -> Array:
    matrix = jnp.asarray(matrix, x.dtype)
    return jnp.einsum("Hh,bhwc->bHwc", matrix, x, precision=lax.Precision.HIGHEST)


def along_width(matrix: np.ndarray, x: Array) -> Array:
    matrix = jnp.asarray(matrix, x.dtype)
    return jnp.einsum("Ww,bhwc->bhWc", matrix, x, precision=lax.Precision.HIGHEST)


def resize_bilinear(x: Float[Array, "b h w c"], hw: Sequence[int]) -> Float[Array, "b H W c"]:
    """Bilinear resize as every head of the reference does it (see `interpolation_matrix`)."""
    return _resize(x, hw, interpolation_matrix)


def resize_bicubic(x: Float[Array, "b h w c"], hw: Sequence[int]) -> Float[Array, "b H W c"]:
    """Bicubic resize, which tables of positions go through (see `cubic_matrix`)."""
    return _resize(x, hw, cubic_matrix)


def _resize(x, hw, matrix_of):
    for axis, along in ((1, along_height), (2, along_width)):
        if x.shape[axis] != hw[axis - 1]:
            x = along(matrix_of(x.shape[axis], hw[axis - 1]), x)
    return x
