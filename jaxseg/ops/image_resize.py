"""Resizes uint8 images inside a compiled program, with the bits of OpenCV or of Pillow.

`jaxseg.data.transforms` resizes with these on the host. An exported model resizes by itself, and
must see the same pixels.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from jaxseg.ops.resize import antialiased_matrix, triangle

SCALE = 2048  # OpenCV's weights are multiples of 1/2048
PILLOW_BITS = 22  # Pillow's are multiples of 1/2^22


def resize_image(images: UInt8[Array, "b h w 3"], hw: Sequence[int]) -> UInt8[Array, "b H W 3"]:
    """Resizes images as OpenCV's INTER_LINEAR resizes uint8: in integers, without anti-aliasing.

    Args:
      images: the images.
      hw: height and width of the results.
    """
    height, width = images.shape[1:3]
    if (height, width) == tuple(hw):
        return images
    values = images.astype(jnp.int32)
    if (height, width) == (2 * hw[0], 2 * hw[1]):  # OpenCV then averages four pixels
        four = sum(values[:, i::2, j::2] for i in range(2) for j in range(2))
        return lax.div(four + 2, jnp.int32(4)).astype(jnp.uint8)
    left, right, weights = _taps(width, hw[1])
    near, far = weights[:, None, None, :, None]
    rows = values[:, :, left] * near + values[:, :, right] * far
    upper, lower, weights = _taps(height, hw[0])
    rows = lax.div(rows, jnp.int32(16))
    near, far = weights[:, None, :, None, None]
    halves = [
        lax.div(rows[:, taken] * weight, jnp.int32(1 << 16))
        for taken, weight in ((upper, near), (lower, far))
    ]
    return lax.div(halves[0] + halves[1] + 2, jnp.int32(4)).astype(jnp.uint8)


def resize_image_smoothly(
    images: UInt8[Array, "b h w 3"], hw: Sequence[int]
) -> UInt8[Array, "b H W 3"]:
    """Resizes images as Pillow's BILINEAR resizes uint8: in integers, with anti-aliasing.

    Args:
      images: the images.
      hw: height and width of the results.
    """
    for axis in (2, 1):
        size, out_size = images.shape[axis], hw[axis - 1]
        if size != out_size:
            weights = antialiased_matrix(size, out_size, triangle, reach=1)
            weights = np.floor(weights * (1 << PILLOW_BITS) + 0.5).astype(np.int32)
            values = jnp.moveaxis(images.astype(jnp.int32), axis, -1)
            sums = jnp.einsum("...s,os->...o", values, weights) + (1 << (PILLOW_BITS - 1))
            values = lax.shift_right_arithmetic(sums, jnp.int32(PILLOW_BITS))
            images = jnp.moveaxis(jnp.clip(values, 0, 255), -1, axis).astype(jnp.uint8)
    return images


def _taps(size, out_size):
    """Returns the two neighbors of every output pixel and their weights, int32 [2, out_size]."""
    scale = 1 / (out_size / size)  # as OpenCV computes it, in float64
    position = ((np.arange(out_size) + 0.5) * scale - 0.5).astype(np.float32)
    lower = np.floor(position).astype(int)
    fraction = position - lower.astype(np.float32)
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(SCALE)).astype(np.int32)
    return np.clip(lower, 0, size - 1), np.clip(lower + 1, 0, size - 1), weights


def normalize_image(
    images: UInt8[Array, "b h w 3"], levels: Float[np.ndarray, "256 3"]
) -> Float[Array, "b h w 3"]:
    """Replaces every value by its level: the table of `transforms.normalized_levels`."""
    channels = [jnp.asarray(levels[:, c])[images[..., c].astype(jnp.int32)] for c in range(3)]
    return jnp.stack(channels, axis=-1)
