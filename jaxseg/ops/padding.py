"""Maps of several sizes in one batch, each padded at the bottom and on the right to one shape.

A model gives such a map the result of the map alone if no layer reads the padding. `clear_padding`
makes it zero, as outside of a map. The matrices here resample a map without its padding. Its true
size is an array, so that one compiled program serves all sizes.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Sizes = Int[Array, "b 2"]  # height and width of every map of a batch, without padding


def sizes_at_stride(sizes: Sizes | None, stride: int) -> Sizes | None:
    """Returns the sizes of the feature maps at a stride. Odd sizes round up.

    Args:
      sizes: the sizes of the images in pixels, or None for a batch without padding.
      stride: pixels per cell of the feature map.
    """
    return None if sizes is None else (sizes + stride - 1) // stride


def clear_padding(x: Float[Array, "b h w c"], sizes: Sizes | None) -> Float[Array, "b h w c"]:
    """Sets the padding of maps to zero. Without sizes, maps have no padding."""
    if sizes is None:
        return x
    rows, columns = (jnp.arange(x.shape[axis])[None] < sizes[:, axis - 1, None] for axis in (1, 2))
    return jnp.where((rows[:, :, None] & columns[:, None])[..., None], x, jnp.zeros((), x.dtype))


def interpolation_matrices(
    hw: Sequence[int], out_hw: Sequence[int], sizes: Sizes | None, out_sizes: Sizes | None
) -> tuple[Float[Array, "b H h"], Float[Array, "b W w"]]:
    """Returns the matrices that resize padded maps bilinearly, along height and along width.

    Without padding they are those of `resize.interpolation_matrix`. Rows of padding are zero.

    Args:
      hw: height and width of the maps.
      out_hw: height and width of the results.
      sizes: sizes of the maps without padding, or None if they have none.
      out_sizes: sizes of the results without padding, or None if they have none.
    """
    batch = (out_sizes if sizes is None else sizes).shape
    sizes = jnp.broadcast_to(jnp.array(hw), batch) if sizes is None else sizes
    out_sizes = jnp.broadcast_to(jnp.array(out_hw), batch) if out_sizes is None else out_sizes
    rows, columns = (
        _interpolation(sizes[:, axis], out_sizes[:, axis], hw[axis], out_hw[axis])
        for axis in (0, 1)
    )
    return rows, columns


def _interpolation(size, out_size, length, out_length):
    """Returns matrices [b, out_length, length] that resize `size` cells to `out_size` cells."""
    cell = jnp.arange(out_length)[None]
    center = cell.astype(jnp.float32) + 0.5
    scale = (size.astype(jnp.float32) / out_size.astype(jnp.float32))[:, None]
    # scale · center − 1/2, rounded to float32 only once: products of 12 bits and 12 are exact.
    leading = lax.bitcast_convert_type(scale, jnp.uint32) & np.uint32(0xFFFFF000)
    leading = lax.bitcast_convert_type(leading, jnp.float32)
    position = jnp.maximum((leading * center - 0.5) + (scale - leading) * center, 0)
    last = size[:, None] - 1
    lower = jnp.minimum(position.astype(jnp.int32), last)
    upper = jnp.minimum(lower + 1, last)
    fraction = position - lower.astype(jnp.float32)
    inside = cell < out_size[:, None]

    def tap(neighbor, weight):
        weight = jnp.where(inside, weight, 0)[..., None]
        return jnp.where(neighbor[..., None] == jnp.arange(length)[None, None], weight, 0)

    return tap(lower, 1 - fraction) + tap(upper, fraction)


def bin_matrices(size: Int[Array, " b"], bins: int, length: int) -> Float[Array, "b s n"]:
    """Returns the matrices that average padded maps over bins along one axis.

    Bin i of a map covers its cells from floor(i·size/bins) to ceil((i+1)·size/bins).

    Args:
      size: the number of cells of every map.
      bins: the number of bins, s.
      length: the number of cells with padding, n.
    """
    size, index = size[:, None, None], jnp.arange(bins)[None, :, None]
    start, stop = index * size // bins, -((index + 1) * size // -bins)
    source = jnp.arange(length)[None, None]
    inside = (source >= start) & (source < stop)
    return jnp.where(inside, 1 / (stop - start).astype(jnp.float32), 0)
