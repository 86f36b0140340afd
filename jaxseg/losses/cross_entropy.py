"""The cross-entropy loss of semantic segmentation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import linear_call
from jaxtyping import Array, Float, Integer

from jaxseg.ops.resize import along_height, along_width, interpolation_matrix, interpolation_taps
from pallas_kernels import platform

IGNORE = 255
# Rows of labels whose resized logits exist at the same time. On a CPU, more do not fit into its
# caches, which takes a tenth more time. By the compiler for TPUs, fewer take a seventh more.
BAND, TPU_BAND = 32, 128


def cross_entropy(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b H W"]
) -> Float[Array, ""]:
    """Computes the mean cross-entropy of logits that are resized to the label, in float32.

    The mean is over *all* pixels. Pixels labeled 255 add nothing to the sum but count in the
    denominator. The reference does the same: its `avg_non_ignore` is off in every published config.

    The resized logits are never in memory as a whole. Bands of rows are resized one after the
    other, and the gradient is computed together with the loss.

    Args:
      logits: the logits of `k` classes, at any size.
      labels: the class of every pixel; 255 is ignored.
    """
    return _sum_over_pixels(logits, labels) / labels.size


@jax.custom_vjp
def _sum_over_pixels(logits, labels):
    def add_band(sums, band):
        return sums + _sums_over_band(_rows(logits, band), *band[1:], logits.dtype), None

    return lax.scan(add_band, jnp.zeros(len(logits)), _bands(logits, labels))[0].sum()


def _forward(logits, labels):
    def add_band(carry, band):
        sums, gradient = carry
        of_band, transpose = jax.vjp(
            lambda rows: _sums_over_band(rows, *band[1:], logits.dtype), _rows(logits, band)
        )
        (of_rows,) = transpose(jnp.ones_like(of_band))
        gradient = lax.dynamic_update_slice_in_dim(
            gradient, _rows(gradient, band) + of_rows, band[0], axis=1
        )
        return (sums + of_band, gradient), None

    # The sum over images comes last, so that one all-reduce serves all bands.
    start = jnp.zeros(len(logits)), jnp.zeros(logits.shape)
    (sums, gradient), _ = lax.scan(add_band, start, _bands(logits, labels))
    return sums.sum(), gradient.astype(logits.dtype)


def _backward(gradient, cotangent):
    return (gradient.astype(jnp.float32) * cotangent).astype(gradient.dtype), None


_sum_over_pixels.defvjp(_forward, _backward)


def _bands(logits, labels):
    """Returns, for every band, the first row of logits, its interpolation matrix and its labels."""
    b, height, width = labels.shape
    size = min(TPU_BAND if platform() == "tpu" else BAND, height)
    count = -(-height // size)
    matrix = interpolation_matrix(logits.shape[1], height)
    matrix = np.pad(matrix, ((0, count * size - height), (0, 0))).reshape(count, size, -1)
    used = [np.flatnonzero(band.any(axis=0)) for band in matrix]
    length = max(rows[-1] - rows[0] + 1 for rows in used)
    first = np.minimum([rows[0] for rows in used], logits.shape[1] - length)
    matrices = [band[:, i : i + length] for band, i in zip(matrix, first, strict=True)]
    labels = jnp.pad(labels, ((0, 0), (0, count * size - height), (0, 0)), constant_values=IGNORE)
    labels = labels.reshape(b, count, size, width).swapaxes(0, 1)
    return first.astype(np.int32), np.stack(matrices).astype(np.float32), labels


def _rows(x, band):
    """Returns the rows of maps of which a band is interpolated, in float32."""
    first, matrix, _ = band
    return lax.dynamic_slice_in_dim(x, first, matrix.shape[1], axis=1).astype(jnp.float32)


def _sums_over_band(rows, matrix, labels, dtype):
    """Returns the sum of the cross-entropy over the pixels of a band, for each image.

    Args:
      rows: the rows of logits, in float32.
      matrix: interpolates the band from them.
      labels: the labels of the band.
      dtype: the type in which the logits came.
    """
    # Three passes of bfloat16 on a TPU err by 2^-16; logits that come in bfloat16 err by 2^-9.
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.HIGH
    columns = interpolation_matrix(rows.shape[2], labels.shape[2]).astype(np.float32)
    if platform() == "gpu":
        logits = _interpolated_by_taps(matrix, columns, rows)
    else:
        logits = jnp.einsum("Hh,bhwk->bHwk", matrix, rows, precision=precision)
        logits = jnp.einsum("Ww,bhwk->bhWk", columns, logits, precision=precision)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    # A comparison replaces a gather, whose gradient would be a scatter. A label of 255 matches no
    # class unless there are more than 255 classes, hence the mask below.
    is_label = labels[..., None] == classes[None, None, None]
    of_label = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    per_pixel = jax.nn.logsumexp(logits, axis=-1) - of_label
    return jnp.sum(jnp.where(labels == IGNORE, 0.0, per_pixel), axis=(1, 2))


def _interpolated_by_taps(matrix, columns, rows):
    """Returns the band as sums of two neighbors along each axis, for GPUs.

    XLA computes these sums anew within each operation that reads the band, which is then never in
    memory. Nor is its gradient, if the columns are a multiple of those of the logits.
    """

    def interpolate(of_rows, rows):
        lower = jnp.argmax(of_rows > 0, axis=1)
        upper = jnp.minimum(lower + 1, of_rows.shape[1] - 1)
        share = 1 - jnp.take_along_axis(of_rows, lower[:, None], axis=1)[:, 0]
        band = _mixed(rows, 1, lower, upper, share)
        lower, upper, share = interpolation_taps(columns.shape[1], columns.shape[0])
        return _mixed(band, 2, lower, upper, share.astype(np.float32))

    def transpose(of_rows, band):
        band = _sums_over_columns(columns, band)
        return along_height(of_rows.T, band)

    return linear_call(interpolate, transpose, jnp.asarray(matrix), rows)


def _sums_over_columns(columns, band):
    """Multiplies a band by the transposed interpolation matrix of its columns.

    A column of logits is interpolated to the group of columns at its place and to the groups beside
    it. A sum over each group is fused with what computes the band; a matrix product is not.
    """
    width, narrow = columns.shape
    if width % narrow:
        return along_width(columns.T, band)
    groups = band.reshape(*band.shape[:2], narrow, width // narrow, -1)
    padded = np.pad(columns.reshape(narrow, -1, narrow), ((0, 0), (0, 0), (1, 1)))
    place = np.arange(narrow)
    result = 0
    for shift in (-1, 0, 1):
        weights = padded[place, :, place + shift + 1]  # of the group at a place for its neighbor
        sums = (groups * weights[None, None, :, :, None]).sum(3)
        result += lax.pad(sums, 0.0, [(0, 0, 0), (0, 0, 0), (shift, -shift, 0), (0, 0, 0)])
    return result


def _mixed(x, axis, lower, upper, share):
    """Interpolates along an axis between two neighbors, of which the second has a share."""
    share = jnp.expand_dims(share, [other for other in range(x.ndim) if other != axis])
    first, second = (jnp.take(x, taken, axis=axis, mode="clip") for taken in (lower, upper))
    return first * (1 - share) + second * share
