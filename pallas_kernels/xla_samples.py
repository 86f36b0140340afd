"""Bilinear samples of maps with borders of zeros, and their transpose, by XLA operations alone.

A *row* holds the channels of one pixel and one group (or head). Every map gets a border of zeros,
and a point far outside is moved into it. So no point needs a mask, and the four pixels around a
point lie at fixed distances from the first. One sampling point of all M output rows is handled at a
time, as gathers of rows. Memory therefore never holds anything of size points × channels.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer, Shaped

BORDER = 2  # pixels of zeros on each side: all four pixels around a point can lie in them
BLOCK = 4096  # output rows; the rows that they gather stay in the CPU's cache until they are used


class Points(NamedTuple):
    """Holds one sampling point of every output row.

    Attributes:
      row: the row of the pixel left of and above the point, as `find_rows` gives it.
      fraction_x: how far the point is right of that pixel.
      fraction_y: how far the point is below that pixel.
      weight: the factor of the sample.
    """

    row: Integer[Array, " m"]
    fraction_x: Float[Array, " m"]
    fraction_y: Float[Array, " m"]
    weight: Float[Array, " m"]


def add_borders(maps: Shaped[Array, "n h w g c"]) -> Shaped[Array, "rows c"]:
    """Returns the rows of all maps with their borders, in the order (image, group, y, x)."""
    width = (BORDER, BORDER)
    padded = jnp.pad(maps.transpose(0, 3, 1, 2, 4), ((0, 0), (0, 0), width, width, (0, 0)))
    return padded.reshape(-1, maps.shape[-1])


def remove_borders(
    rows: Shaped[Array, "rows c"], shape: tuple[int, ...]
) -> Shaped[Array, "n h w g c"]:
    """Returns the maps, of shape [n, h, w, g, c], whose rows `add_borders` gave."""
    n, height, width, groups, channels = shape
    maps = rows.reshape(n, groups, height + 2 * BORDER, width + 2 * BORDER, channels)
    return maps[:, :, BORDER:-BORDER, BORDER:-BORDER].transpose(0, 2, 3, 1, 4)


def find_rows(
    number: Integer[Array, " m"],
    y: Integer[Array, " m"],
    x: Integer[Array, " m"],
    height: int,
    width: int,
) -> Integer[Array, " m"]:
    """Returns the rows of whole pixels; those far outside are moved into the border.

    Args:
      number: which map, counted as image · groups + group.
      y: the row of the pixel in its map.
      x: the column of the pixel in its map.
      height: the height of the maps.
      width: the width of the maps.
    """
    y = jnp.clip(y, -BORDER, height) + BORDER
    x = jnp.clip(x, -BORDER, width) + BORDER
    return (number * (height + 2 * BORDER) + y) * (width + 2 * BORDER) + x


def add_samples(
    total: Float[Array, "m c"], rows: Float[Array, "r c"], width: int, points: Points
) -> Float[Array, "m c"]:
    """Returns `total` plus the weighted samples at one point of every output row.

    Args:
      total: sums of the points before.
      rows: what `add_borders` gave.
      width: the width of the maps, without borders.
      points: where to sample.
    """
    for step, weight in zip(_steps(width), _weights(points), strict=True):
        total += (weight * points.weight)[:, None] * _take(rows, points.row + step)
    return total


def transpose_samples(
    rows_gradient: Float[Array, "r c"],
    rows: Float[Array, "r c"],
    width: int,
    points: Points,
    cotangent: Float[Array, "m c"],
) -> tuple[Float[Array, "r c"], tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, " m"]]]:
    """Transposes `add_samples` for one point of every output row.

    Returns:
      `rows_gradient` plus the share of this point, and the gradients of x and y (in pixels) and of
      the weight.
    """
    steps = jnp.array(_steps(width))

    def transpose_block(rows_gradient, block):
        # All four pixels are handled at once: on XLA:CPU one gather, batched product and scatter
        # are faster than four of each. `add_samples` differs: there gather and sum are fused.
        points, cotangent = block
        four = points.row[:, None] + steps
        weights = jnp.stack(_weights(points), axis=1) * points.weight[:, None]
        rows_gradient = rows_gradient.at[four].add(
            weights[..., None] * cotangent[:, None], mode="promise_in_bounds"
        )
        pixels = _take(rows, four)
        inner = jnp.einsum("mkc,mc->mk", pixels, cotangent, precision=lax.Precision.HIGHEST)
        return rows_gradient, _point_gradients(points, *inner.T)

    blocks = tuple(_in_blocks(array) for array in (*points, cotangent))
    rows_gradient, gradients = lax.scan(
        transpose_block, rows_gradient, (Points(*blocks[:-1]), blocks[-1])
    )
    x, y, weight = (gradient.ravel()[: len(cotangent)] for gradient in gradients)
    return rows_gradient, (x, y, weight)


def _steps(width):
    """Returns the distances in rows from a pixel to itself and to those right, below, and both."""
    below = width + 2 * BORDER
    return 0, 1, below, below + 1


def _weights(points):
    """Returns the bilinear weights of the four pixels, in the order of `_steps`."""
    x, y = points.fraction_x, points.fraction_y
    return (1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x


def _point_gradients(points, here, right, below, both):
    """Returns the gradients of x, y and the weight, from the inner products of the four pixels."""
    x, y = points.fraction_x, points.fraction_y
    along_x = (1 - y) * (right - here) + y * (both - below)
    along_y = (1 - x) * (below - here) + x * (both - right)
    sample = (1 - y) * ((1 - x) * here + x * right) + y * ((1 - x) * below + x * both)
    return along_x * points.weight, along_y * points.weight, sample


def _take(rows, index):
    return rows.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _in_blocks(array: Shaped[Array, " m *rest"]) -> Shaped[Array, "blocks block *rest"]:
    """Splits an array into blocks of equal size, the last one padded with zeros.

    The zeros add nothing to the row that they are scattered to.
    """
    blocks = max(1, -(-len(array) // BLOCK))
    array = jnp.pad(array, ((0, -len(array) % blocks), *((0, 0),) * (array.ndim - 1)))
    return array.reshape(blocks, len(array) // blocks, *array.shape[1:])
