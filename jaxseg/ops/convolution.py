"""Convolutions with hand-written gradients, and pooling to a given size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.layout import columns_in_lanes, fixes_layouts
from jaxseg.ops.padding import Sizes, bin_matrices, interpolation_matrices
from jaxseg.ops.resize import along_height, along_width, interpolation_matrix
from jaxseg.ops.sums import sum_over_cells
from pallas_kernels import platform

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _margin(x: Array, size: int) -> Array:
    margin = (size // 2, size // 2)
    return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Computes a 3×3 convolution with stride 1 and zero padding of 1.

    On a TPU, maps of few channels have their columns in the lanes (`ops.layout`), where XLA's
    convolution is slow. There, one matrix product sums over the nine taps of all channels.
    """
    return (_stride1_by_product if _columns_in_lanes(x) else _stride1)(x, kernel)


def _columns_in_lanes(x):
    return fixes_layouts() and columns_in_lanes(*x.shape[2:])


def _neighbors(x):
    """Returns the nine neighbors of every cell, neighbor after neighbor: [b, h, 9c, w]."""
    x, zero = x.swapaxes(2, 3), jnp.zeros((), x.dtype)

    def neighbor(i, j):
        return lax.pad(x, zero, ((0, 0, 0), (1 - i, i - 1, 0), (0, 0, 0), (1 - j, j - 1, 0)))

    return jnp.concatenate([neighbor(i, j) for i in range(3) for j in range(3)], axis=2)


@jax.custom_vjp
def _stride1_by_product(x, kernel):
    return jnp.einsum("bhkw,kd->bhwd", _neighbors(x), kernel.reshape(-1, kernel.shape[3]))


def _by_product_forward(x, kernel):
    return _stride1_by_product(x, kernel), (x, kernel)


def _by_product_backward(residuals, cotangent):
    # The neighbors of the cotangent serve both gradients, so that none are kept until then.
    x, kernel = residuals
    neighbors, flipped = _neighbors(cotangent), kernel[::-1, ::-1].swapaxes(2, 3)
    x_gradient = jnp.einsum("bhkw,kc->bhwc", neighbors, flipped.reshape(-1, kernel.shape[2]))
    flipped_gradient = jnp.einsum("bhwc,bhkw->kc", x, neighbors).reshape(flipped.shape)
    return x_gradient, flipped_gradient[::-1, ::-1].swapaxes(2, 3)


_stride1_by_product.defvjp(_by_product_forward, _by_product_backward)


@jax.custom_vjp
def _stride1(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def _stride1_forward(x, kernel):
    return _stride1(x, kernel), (x, kernel)


def _stride1_backward(residuals, cotangent):
    x, kernel = residuals
    x_gradient = _stride1(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))

    def by_matmul(x, cotangent):
        # XLA's own weight gradient takes three times as long as nine matrix products on CPU, and
        # by the estimate of the TPU compiler.
        _, height, width, channels = x.shape
        padded = _margin(x, 3)
        taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        flat = cotangent.reshape(-1, cotangent.shape[-1])
        return jnp.stack([tap.reshape(-1, channels).T @ flat for tap in taps]).reshape(kernel.shape)

    def by_convolution(x, cotangent):
        _, transpose = jax.vjp(
            lambda k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=DIMENSIONS),
            kernel,
        )
        return transpose(cotangent)[0]

    kernel_gradient = lax.platform_dependent(
        x, cotangent, cpu=by_matmul, tpu=by_matmul, default=by_convolution
    )
    return x_gradient, kernel_gradient


_stride1.defvjp(_stride1_forward, _stride1_backward)


def conv3x3_stride2(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b p q d"]:
    """Computes a 3×3 convolution with stride 2 and zero padding of 1.

    On a TPU, maps of few channels are treated as by `conv3x3`. A matrix product with zeros and ones
    picks the columns of each tap. A second product sums over rows, taps and channels.
    """
    return (_stride2_by_products if _columns_in_lanes(x) else _stride2)(x, kernel)


def _stride2(x, kernel):
    margin = (1, 1)
    return lax.conv_general_dilated(
        x, kernel, (2, 2), (margin, margin), dimension_numbers=DIMENSIONS
    )


def _stride2_by_products(x, kernel):
    _, height, width, _ = x.shape
    out_height, out_width = -(-height // 2), -(-width // 2)
    picked = np.zeros((3, out_width, width))
    for tap, column in np.ndindex(3, out_width):
        if 0 <= 2 * column + tap - 1 < width:
            picked[tap, column, 2 * column + tap - 1] = 1
    columns = jnp.einsum("jqw,bhwc->bhjcq", jnp.asarray(picked, x.dtype), x)
    columns = jnp.pad(columns, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    rows = [columns[:, i : i + 2 * out_height - 1 : 2] for i in range(3)]
    return jnp.einsum("bpijcq,ijcd->bpqd", jnp.stack(rows, axis=2), kernel)


@jax.custom_vjp
def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]
) -> Float[Array, "b h w c"]:
    """Computes a depthwise convolution with stride 1 and "same" zero padding.

    It is written as k² shifted multiply-adds, which XLA fuses into one pass. XLA's grouped
    convolution is 15-20 times slower on CPU.
    """
    size = kernel.shape[0]
    _, height, width, _ = x.shape
    padded = _margin(x, size)
    taps = [(i, j) for i in range(size) for j in range(size)]
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j] for i, j in taps)


def _depthwise_forward(x, kernel):
    return depthwise_conv(x, kernel), (x, kernel)


def _depthwise_backward(residuals, cotangent):
    x, kernel = residuals
    size = kernel.shape[0]
    padded = _margin(x, size)

    def tap_product(tap):
        start = (0, tap // size, tap % size, 0)
        shifted = lax.dynamic_slice(padded, start, x.shape)
        return shifted.astype(jnp.float32) * cotangent.astype(jnp.float32)

    # On CPU, one tap at a time takes half the time of all taps at once, and compiles quickly.
    # Elsewhere, all taps at once are one pass over the maps. On TPU, that takes half the time of a
    # loop; the sum over columns comes after that over rows, without which one image takes 16 times
    # as long.
    taps = np.arange(size * size)
    per_image = lax.platform_dependent(
        cpu=lambda: lax.map(lambda tap: tap_product(tap).sum((1, 2)), taps),
        tpu=lambda: jnp.stack([tap_product(tap).sum(1) for tap in taps]).sum(2),
        default=lambda: sum_over_cells(jnp.stack(list(map(tap_product, taps)), 3)).swapaxes(0, 1),
    )
    kernel_gradient = per_image.sum(1)  # last, so that one all-reduce serves all taps
    x_gradient = depthwise_conv(cotangent, kernel[::-1, ::-1])
    return x_gradient, kernel_gradient.reshape(kernel.shape).astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def conv3x3_of_resized(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c d"],
    hw: Sequence[int],
    sizes: Sizes | None = None,
    out_sizes: Sizes | None = None,
) -> Float[Array, "b H W d"]:
    """Computes conv3x3(resize_bilinear(x, hw), kernel) without forming the resized map.

    Both operations are linear. The channels can therefore be mixed first, at the small size, once
    for each of the nine taps. The results are then resized and shifted, one axis at a time. For a
    map a quarter as large as its result, this takes a third of the multiplications. Smaller maps
    need even fewer.

    Args:
      x: the small map.
      kernel: the kernel of the convolution.
      hw: height and width of the result.
      sizes: see `resize.resize_bilinear`.
      out_sizes: see `resize.resize_bilinear`.
    """
    if sizes is None and out_sizes is None:
        matrices, batch = map(interpolation_matrix, x.shape[1:3], hw), ""
    else:
        matrices, batch = interpolation_matrices(x.shape[1:3], hw, sizes, out_sizes), "b"
    rows, columns = (jnp.asarray(_shifted(matrix), x.dtype) for matrix in matrices)
    if platform() == "gpu":
        return _products_by_map(x, kernel, rows, columns)
    precision = lax.Precision.HIGHEST
    taps = jnp.einsum("bhwc,ijcd->bhwijd", x, kernel)
    # Columns come last: their product has the channels in the lanes of a TPU, as the result needs.
    tall = jnp.einsum(f"{batch}Hih,bhwijd->bHwjd", rows, taps, precision=precision)
    return jnp.einsum(f"{batch}Wjw,bHwjd->bHWd", columns, tall, precision=precision)


def _products_by_map(x, kernel, rows, columns):
    """Computes `conv3x3_of_resized` by products for each image, and then for each of its rows.

    On GPUs, each operand lies in memory as its product reads it. On CPUs, this takes as long.
    """
    b, height, width, c = x.shape
    kernel = kernel.swapaxes(1, 2).reshape(3, c, -1)  # [i, c, (j, d)]
    maps = jnp.broadcast_to(x.reshape(b, 1, -1, c), (b, 3, height * width, c))
    taps = maps @ jnp.broadcast_to(kernel, (b, *kernel.shape))  # [b, i, (h, w), (j, d)]
    rows = rows.reshape(*rows.shape[:-2], -1)  # [..., H, (i, h)]
    rows = jnp.broadcast_to(rows, (b, *rows.shape[-2:]))
    precision = lax.Precision.HIGHEST
    tall = jnp.matmul(rows, taps.reshape(b, 3 * height, -1), precision=precision)
    tall = tall.reshape(b, rows.shape[1], width * 3, -1)  # [b, H, (w, j), d]
    columns = columns.swapaxes(-1, -2).reshape(*columns.shape[:-2], -1)  # [..., W, (w, j)]
    return _product_of_rows(columns[..., None, :, :], tall)


@jax.custom_vjp
def _product_of_rows(matrix, x):
    """Multiplies each row of maps, [b, h, w, c], by a matrix [..., 1, W, w].

    Where a sum of several products has one cotangent, XLA would merge the products with it, and
    copy their results apart. It does not merge what waits for the matrix, too.
    """
    matrix = jnp.broadcast_to(matrix, (*x.shape[:2], *matrix.shape[-2:]))
    return jnp.matmul(matrix, x, precision=lax.Precision.HIGHEST)


def _product_of_rows_backward(matrix, cotangent):
    matrix, cotangent = lax.optimization_barrier((matrix, cotangent))
    # Nobody differentiates by the matrix.
    return jnp.zeros_like(matrix), _product_of_rows(matrix.swapaxes(-1, -2), cotangent)


_product_of_rows.defvjp(
    lambda matrix, x: (_product_of_rows(matrix, x), matrix), _product_of_rows_backward
)


def _shifted(matrix):
    """Returns the rows of [..., n, m] at each place and its two neighbors, as [..., n, 3, m].

    Neighbors outside are zero.
    """
    xp = np if isinstance(matrix, np.ndarray) else jnp
    count = matrix.shape[-2]
    wider = xp.pad(matrix, ((0, 0),) * (matrix.ndim - 2) + ((1, 1), (0, 0)))
    return xp.stack([wider[..., j : j + count, :] for j in range(3)], axis=-2)


def adaptive_avg_pool(
    x: Float[Array, "b h w c"], size: int, sizes: Sizes | None = None
) -> Float[Array, "b s s c"]:
    """Averages a map over size × size bins, which overlap or repeat on a smaller map.

    Along an axis of `length` cells, bin i covers floor(i·length/size) to ceil((i+1)·length/size),
    as in PyTorch.

    Args:
      x: the maps.
      size: the number of bins along either axis.
      sizes: sizes of the maps without padding, or None if they have none.
    """
    if sizes is not None:
        rows, columns = (bin_matrices(sizes[:, i], size, x.shape[i + 1]) for i in (0, 1))
        return along_width(columns, along_height(rows, x))

    def bins(length):
        matrix = np.zeros((size, length))
        for i in range(size):
            start, stop = i * length // size, -((i + 1) * length // -size)
            matrix[i, start:stop] = 1 / (stop - start)
        return matrix

    return along_width(bins(x.shape[2]), along_height(bins(x.shape[1]), x))
