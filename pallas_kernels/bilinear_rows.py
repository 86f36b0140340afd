"""Weighted bilinear samples of flat rows, and their transpose: what the operators share.

A *row* is the channels of one pixel and one group (or head) of the value. One sampling point of
all M output rows is handled at a time, as a gather of four rows of contiguous channels, so that
nothing of size points × channels is ever held.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

BLOCK = 4096  # output rows: what they gather stays in the cache of a CPU until it is used


class Plane(NamedTuple):
    """Where the pixels of the image that is sampled lie among the rows of the value."""

    height: int
    width: int
    first: Int[Array, "m"]  # the row of pixel (0, 0), for every output row
    step: int  # rows from a pixel to the next


class Points(NamedTuple):
    """One sampling point of every output row, `fraction` right of and below a whole pixel."""

    x: Int[Array, "m"]
    y: Int[Array, "m"]
    fraction_x: Float[Array, "m"]
    fraction_y: Float[Array, "m"]
    weight: Float[Array, "m"]


class Corner(NamedTuple):
    """One of the four pixels around each sampling point."""

    row: Int[Array, "m"]  # the row of the value that holds it, or some row if none does
    inside: Bool[Array, "m"]
    weight: Float[Array, "m"]  # its bilinear weight, 0 outside the image
    slope_x: Float[Array, "m"]  # and the derivatives of that weight
    slope_y: Float[Array, "m"]


def corners(plane: Plane, points: Points) -> Iterator[Corner]:
    """The four pixels that the points lie between, row by row."""
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
    """`total` plus the weighted samples of `rows` at one point."""
    for corner in corners(plane, points):
        total += (corner.weight * points.weight)[:, None] * _take(rows, corner.row)
    return total


def _in_blocks(array: Shaped[Array, "m *rest"]) -> Shaped[Array, "blocks block *rest"]:
    """Blocks of equal size, with zeros after the end, which add nothing wherever they go."""
    blocks = max(1, -(-len(array) // BLOCK))
    array = jnp.pad(array, ((0, -len(array) % blocks), *((0, 0),) * (array.ndim - 1)))
    return array.reshape(blocks, len(array) // blocks, *array.shape[1:])


def transpose_samples(
    rows_gradient: Float[Array, "r c"],
    rows: Float[Array, "r c"],
    plane: Plane,
    points: Points,
    cotangent: Float[Array, "m c"],
) -> tuple[Float[Array, "r c"], tuple[Float[Array, "m"], Float[Array, "m"], Float[Array, "m"]]]:
    """`rows_gradient` plus this point's share, and the gradients of x, y (in pixels) and weight."""
    # All four corners at once: on XLA:CPU one gather, batched product and scatter are up to twice
    # as fast as four of each. Not so in `add_samples`, where gather and sum are fused.
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
