"""Resamples feature maps and position tables by matrix products.

Heads, losses and inference resize their maps with these functions.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.padding import Sizes, interpolation_matrices
from pallas_kernels import platform


def interpolation_matrix(size: int, out_size: int) -> np.ndarray:
    """Returns the [out_size, size] matrix of linear interpolation along one axis.

    `interpolation_taps` states the conventions.
    """
    lower, upper, fraction = interpolation_taps(size, out_size)
    matrix = np.zeros((out_size, size))
    np.add.at(matrix, (np.arange(out_size), lower), 1 - fraction)
    np.add.at(matrix, (np.arange(out_size), upper), fraction)
    return matrix


def interpolation_taps(size: int, out_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the two neighbors of every output pixel along one axis, and the second one's weight.

    Pixel centers are at half pixels (align_corners=False). Edges are clamped, and downscaling has
    no antialiasing.

    >>> lower, upper, weight = interpolation_taps(size=2, out_size=4)
    >>> lower.tolist(), upper.tolist(), weight.tolist()
    ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.25])

    Args:
      size: the number of input pixels.
      out_size: the number of output pixels.

    Returns:
      The index of the first neighbor, that of the second, and the weight of the second, each of
      length `out_size`.
    """
    position = np.maximum(_positions(size, out_size), 0)
    lower = np.minimum(np.floor(position).astype(int), size - 1)
    return lower, np.minimum(lower + 1, size - 1), position - lower


def cubic_matrix(size: int, out_size: int, scale: float | None = None) -> np.ndarray:
    """Returns the [out_size, size] matrix of cubic convolution along one axis.

    It equals PyTorch's "bicubic". Pixel centers are at half pixels (align_corners=False), the edge
    pixel is repeated outside, and downscaling has no antialiasing. The source is Keys, "Cubic
    convolution interpolation", 1981, with a = −0.75.

    Args:
      size: the number of input pixels.
      out_size: the number of output pixels.
      scale: output pixels per input pixel where they are not `out_size` / `size`.
    """
    position = _positions(size, out_size, scale)
    lower = np.floor(position).astype(int)
    matrix = np.zeros((out_size, size))
    for neighbor in (lower - 1, lower, lower + 1, lower + 2):
        weight = _cubic_kernel(np.abs(position - neighbor))
        np.add.at(matrix, (np.arange(out_size), np.clip(neighbor, 0, size - 1)), weight)
    return matrix


def antialiased_matrix(
    size: int, out_size: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int
) -> np.ndarray:
    """Returns the [out_size, size] matrix of a resampling that averages where it downscales.

    The kernel is as wide as output pixels if these are larger than input pixels, and its weights
    add up to 1 within the image, as in Pillow.

    Args:
      size: the number of input pixels.
      out_size: the number of output pixels.
      kernel: the weight of a pixel at a distance.
      reach: the distance at which the kernel ends.
    """
    scale = size / out_size
    width = max(scale, 1.0)
    matrix = np.zeros((out_size, size))
    for place in range(out_size):
        center = (place + 0.5) * scale
        start = max(int(center - reach * width + 0.5), 0)
        stop = min(int(center + reach * width + 0.5), size)
        weights = kernel(np.abs((np.arange(start, stop) - center + 0.5) / width))
        matrix[place, start:stop] = weights / weights.sum()
    return matrix


def triangle(distance: np.ndarray) -> np.ndarray:
    """Returns the weights of linear interpolation at distances from 0 to 1."""
    return np.maximum(1 - distance, 0)


def smooth_cubic(distance: np.ndarray) -> np.ndarray:
    """Returns the weights of cubic convolution with a = −0.5, as PyTorch has it with averaging."""
    return _cubic_kernel(np.minimum(distance, 2), -0.5)


def _positions(size, out_size, scale=None):
    """Returns the positions of the output's pixel centers in pixels of the input."""
    # As in PyTorch, the scale is in float32, and a fused multiply-subtract is rounded to float32
    # once. The class map can depend on it.
    step = np.float32(size) / np.float32(out_size) if scale is None else np.float32(1 / scale)
    return (np.float64(step) * (np.arange(out_size) + 0.5) - 0.5).astype(np.float32)


def _cubic_kernel(distance, a=-0.75):
    """Returns the weight of a neighbor at a distance from 0 to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def along_height(matrix: np.ndarray | Array, x: Array) -> Array:
    """Multiplies maps [b, h, w, c] along their height by a matrix [H, h], or each by its own."""
    matrix = jnp.asarray(matrix, x.dtype)
    b, height, *rest = x.shape
    if _multiplies_by_map(matrix.shape[-2], rest[0] * rest[1]):
        copies = jnp.broadcast_to(matrix, (b, *matrix.shape[-2:]))
        result = jnp.matmul(copies, x.reshape(b, height, -1), precision=lax.Precision.HIGHEST)
        return result.reshape(b, -1, *rest)
    axes = "Hh" if matrix.ndim == 2 else "bHh"
    return jnp.einsum(f"{axes},bhwc->bHwc", matrix, x, precision=lax.Precision.HIGHEST)


def along_width(matrix: np.ndarray | Array, x: Array) -> Array:
    """Multiplies maps [b, h, w, c] along their width by a matrix [W, w], or each by its own."""
    matrix = jnp.asarray(matrix, x.dtype)
    if _multiplies_by_map(matrix.shape[-2], x.shape[3]):
        copies = jnp.broadcast_to(matrix[..., None, :, :], (*x.shape[:2], *matrix.shape[-2:]))
        return jnp.matmul(copies, x, precision=lax.Precision.HIGHEST)
    axes = "Ww" if matrix.ndim == 2 else "bWw"
    return jnp.einsum(f"{axes},bhwc->bhWc", matrix, x, precision=lax.Precision.HIGHEST)


def _multiplies_by_map(rows: int, columns: int) -> bool:
    """Returns whether maps are each multiplied by a copy of a matrix.

    One product with all maps makes XLA transpose them before and after it. A batch of products
    takes and leaves them as they are. On GPUs, XLA reads a single matrix for the whole batch. On
    CPUs it copies the matrix, which pays where the copies are smaller than the maps. TPUs choose
    layouts for the product.

    Args:
      rows: the rows of the matrix.
      columns: the columns of the maps.
    """
    if platform() == "cpu":
        return rows <= columns
    return platform() == "gpu"


def resize_bilinear(
    x: Float[Array, "b h w c"],
    hw: Sequence[int],
    sizes: Sizes | None = None,
    out_sizes: Sizes | None = None,
) -> Float[Array, "b H W c"]:
    """Resizes maps bilinearly to height and width `hw`, as every head of the reference does.

    `interpolation_taps` states the conventions.

    Args:
      x: the maps.
      hw: height and width of the results.
      sizes: sizes of the maps without padding, or None if they have none.
      out_sizes: sizes of the results without padding, or None if they have none.
    """
    if sizes is None and out_sizes is None:
        return _resize(x, hw, interpolation_matrix)
    rows, columns = interpolation_matrices(x.shape[1:3], hw, sizes, out_sizes)
    return along_width(columns, along_height(rows, x))


def resize_bicubic(x: Float[Array, "b h w c"], hw: Sequence[int]) -> Float[Array, "b H W c"]:
    """Resizes maps bicubically to height and width `hw`, as is done for position tables.

    `cubic_matrix` states the conventions.
    """
    return _resize(x, hw, cubic_matrix)


def _resize(x, hw, matrix_of):
    for axis, along in ((1, along_height), (2, along_width)):
        if x.shape[axis] != hw[axis - 1]:
            x = along(matrix_of(x.shape[axis], hw[axis - 1]), x)
    return x
