"""Weighted bilinear samples of flat rows, and their transpose: what the operators of `xla` share.

A *row* is the channels of one pixel and one group (or head) of the value. One sampling point of
all M output rows is handled at a time, as a gather of four rows of contiguous channels, so that
nothing of size points × channels is ever held.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


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

    row: Int[Array, "m"]  # the row of the value that holds it
    inside: Bool[Array, "m"]  # whether it lies in the image
    weight_y: Float[Array, "m"]  # bilinear weight per axis, and its derivative
    weight_x: Float[Array, "m"]
    slope_y: float
    slope_x: float


def _corners(plane: Plane, points: Points) -> Iterator[Corner]:
    fx, fy = points.fraction_x, points.fraction_y
    for y, weight_y, slope_y in ((points.y, 1 - fy, -1.0), (points.y + 1, fy, 1.0)):
        for x, weight_x, slope_x in ((points.x, 1 - fx, -1.0), (points.x + 1, fx, 1.0)):
            inside = (y >= 0) & (y < plane.height) & (x >= 0) & (x < plane.width)
            pixel = jnp.clip(y, 0, plane.height - 1) * plane.width
            pixel += jnp.clip(x, 0, plane.width - 1)
            row = plane.first + pixel * plane.step
            yield Corner(row, inside, weight_y, weight_x, slope_y, slope_x)


def _take(rows, index):
    return rows.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def add_samples(
    total: Float[Array, "m c"], rows: Float[Array, "r c"], plane: Plane, points: Points
) -> Float[Array, "m c"]:
    """`total` plus the weighted samples of `rows` at one point."""
    for corner in _corners(plane, points):
        bilinear = jnp.where(corner.inside, corner.weight_y * corner.weight_x, 0.0)
        total += (bilinear * points.weight)[:, None] * _take(rows, corner.row)
    return total


def transpose_samples(
    rows_gradient: Float[Array, "r c"],
    rows: Float[Array, "r c"],
    plane: Plane,
    points: Points,
    cotangent: Float[Array, "m c"],
) -> tuple[Float[Array, "r c"], tuple[Float[Array, "m"], Float[Array, "m"], Float[Array, "m"]]]:
    """`rows_gradient` plus this point's share, and the gradients of x, y (in pixels) and weight."""
    x_gradient = y_gradient = weight_gradient = jnp.zeros_like(points.weight)
    for corner in _corners(plane, points):
        bilinear = jnp.where(corner.inside, corner.weight_y * corner.weight_x, 0.0)
        rows_gradient = rows_gradient.at[corner.row].add(
            (bilinear * points.weight)[:, None] * cotangent, mode="promise_in_bounds"
        )
        # The barrier keeps XLA:CPU from fusing gather, product and sum into one scalar loop. Six
        # times faster there, no cost elsewhere.
        taken = lax.optimization_barrier(_take(rows, corner.row))
        inner = jnp.einsum("mc,mc->m", taken, cotangent, precision=lax.Precision.HIGHEST)
        inner = jnp.where(corner.inside, inner, 0.0)
        weight_gradient += bilinear * inner
        x_gradient += corner.slope_x * corner.weight_y * inner
        y_gradient += corner.slope_y * corner.weight_x * inner
    return rows_gradient, (x_gradient * points.weight, y_gradient * points.weight, weight_gradient)
