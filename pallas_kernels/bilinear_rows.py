"""Weighted bilinear samples of flat rows, and their transpose, as shared by the operators.

A *row* holds the channels of one pixel and one group (or head) of the value. One sampling point of
all M output rows is handled at a time, as a gather of four rows of contiguous channels. Memory
therefore never holds anything of size points × channels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Shaped

BLOCK = 4096  # output rows; the rows that they gather stay in the CPU's cache until they are used


class Plane(NamedTuple):
    """Says where the pixels of the sampled image lie among the rows of the value.

    Attributes:
      height: the height of the image.
      width: the width of the image.
      first: the row of pixel (0, 0), for every output row.
      step: the number of rows from one pixel to the next.
    """

    height: int
    width: int
    first: Integer[Array, " m"]
    step: int


class Points(NamedTuple):
    """Holds one sampling point of every output row.

    Attributes:
      x: the column of a whole pixel.
      y: the row of a whole pixel.
      fraction_x: how far the point is right of that pixel.
      fraction_y: how far the point is below that pixel.
      weight: the factor of the sample.
    """

    x: Integer[Array, " m"]
    y: Integer[Array, " m"]
    fraction_x: Float[Array, " m"]
    fraction_y: Float[Array, " m"]
    weight: Float[Array, " m"]


class Corner(NamedTuple):
    """Holds one of the four pixels around each sampling point.

    Attributes:
      row: the row of the value that holds the pixel, or any other row if the pixel is outside.
      inside: whether the pixel is in the image.
      weight: the bilinear weight of the pixel, 0 outside the image.
      slope_x: the derivative of `weight` with respect to x.
      slope_y: the derivative of `weight` with respect to y.
    """

    row: Integer[Array, " m"]
    inside: Bool[Array, " m"]
    weight: Float[Array, " m"]
    slope_x: Float[Array, " m"]
    slope_y: Float[Array, " m"]


def corners(plane: Plane, points: Points) -> Iterator[Corner]:
    """Yields the four pixels around the points, row by row."""
    fx, fy = points.fraction_x, points.fraction_y
    for y, weight_y, slope_y in ((points.y, 1 - fy, -1.0), (points.y + 1, fy, 1.0)):
        for x, weight_x, slope_x in ((points.x, 1 - fx, -1.0), (points.x + 1, fx, 1.0)):
            inside = (y >= 0) & (y < plane.height) & (x >= 0) & (x < plane.width)
            pixel = jnp.clip(y, 0, plane.height - 1) * plane.width
            pixel += jnp.clip(x, 0, plane.width - 1)
            yield Corner(
                plane.first + pixel * plane.step,
                inside,
                jnp.where(inside, weight_y * weight_x, 0.0),
                jnp.where(inside, slope_x * weight_y, 0.0),
                jnp.where(inside, slope_y * weight_x, 0.0),
            )


def _take(rows, index):
    return rows.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def add_samples(
    total: Float[Array, "m c"], rows: Float[Array, "r c"], plane: Plane, points: Points
) -> Float[Array, "m c"]:
    """Returns `total` plus the weighted samples of `rows` at one point of every output row."""
    for corner in corners(plane, points):
        total += (corner.weight * points.weight)[:, None] * _take(rows, corner.row)
    return total


def _in_blocks(array: Shaped[Array, " m *rest"]) -> Shaped[Array, "blocks block *rest"]:
    """Splits an array into blocks of equal size, the last one padded with zeros.

    The zeros add nothing to the row that they are scattered to.
    """
    blocks = max(1, -(-len(array) // BLOCK))
    array = jnp.pad(array, ((0, -len(array) % blocks), *((0, 0),) * (array.ndim - 1)))
    return array.reshape(blocks, len(array) // blocks, *array.shape[1:])


def transpose_samples(
    rows_gradient: Float[Array, "r c"],
    rows: Float[Array, "r c"],
    plane: Plane,
    points: Points,
    cotangent: Float[Array, "m c"],
) -> tuple[Float[Array, "r c"], tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, " m"]]]:
    """Transposes `add_samples` for one point of every output row.

    Returns:
      `rows_gradient` plus the share of this point, and the gradients of x and y (in pixels) and of
      the weight.
    """
    # All four corners are handled at once: on XLA:CPU one gather, batched product and scatter are
    # up to twice as fast as four of each. `add_samples` differs: there gather and sum are fused.
    four = list(corners(plane, points))
    row = jnp.stack([corner.row for corner in four], axis=1)  # [m, 4]
    weight = jnp.stack([corner.weight * points.weight for corner in four], axis=1)

    def transpose_block(rows_gradient, block):
        row, weight, cotangent = block
        rows_gradient = rows_gradient.at[row].add(
            weight[..., None] * cotangent[:, None], mode="promise_in_bounds"
        )
        pixels = _take(rows, row)
        inner = jnp.einsum("mkc,mc->mk", pixels, cotangent, precision=lax.Precision.HIGHEST)
        return rows_gradient, inner

    blocks = [_in_blocks(array) for array in (row, weight, cotangent)]
    rows_gradient, inner = lax.scan(transpose_block, rows_gradient, blocks)
    inner = inner.reshape(-1, 4)[: len(row)]
    pairs = list(zip(four, inner.T, strict=True))
    x_gradient = sum(corner.slope_x * product for corner, product in pairs) * points.weight
    y_gradient = sum(corner.slope_y * product for corner, product in pairs) * points.weight
    weight_gradient = sum(corner.weight * product for corner, product in pairs)
    return rows_gradient, (x_gradient, y_gradient, weight_gradient)
