"""The bodies of the kernels of DCNv3 on TPU: one row of output, displacement by displacement.

`dcnv3` explains the algorithm and calls them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

POINTS = 9
X, Y = 0, 1
ROW_AXIS = 3  # grid axes: images, blocks of instances, passes over the channels, rows
FAR = 2.0**20  # pixels; more than the distance between any two pixels of an image


def _hat(u):
    return jnp.maximum(0.0, 1.0 - jnp.abs(u))


class Neighbors(NamedTuple):
    """Says which pixels are the neighbors of a sampling point along one axis.

    Attributes:
      near: (distance, 1) -> whether a pixel at this distance is a neighbor.
      last: a coordinate -> its last neighbor.
    """

    near: Callable
    last: Callable


# A pixel at a distance of one has no weight, but its difference from the next one is the slope.
OF_VALUES = Neighbors(jnp.less, jnp.ceil)
OF_SLOPES = Neighbors(jnp.less_equal, lambda u: jnp.floor(u) + 1)


def _span(lowest, highest, neighbors):
    """Returns the first and the last whole number that neighbors any coordinate in a range."""
    first, last = jnp.floor(jnp.min(lowest)), neighbors.last(jnp.max(highest))
    return first.astype(jnp.int32), last.astype(jnp.int32)


def _weigh_columns(target, points_ref, mask_ref, column_ref, neighbors):
    """Fills column_ref with mask_k · hat(x_k − dx) and returns the y span of the points near dx."""
    lowest, highest = jnp.full_like(target, FAR), jnp.full_like(target, -FAR)
    for k in range(POINTS):
        distance = jnp.abs(points_ref[k, X] - target)
        column_ref[k] = jnp.maximum(0.0, 1.0 - distance) * mask_ref[k]
        near = neighbors.near(distance, 1)
        lowest = jnp.where(near, jnp.minimum(lowest, points_ref[k, Y]), lowest)
        highest = jnp.where(near, jnp.maximum(highest, points_ref[k, Y]), highest)
    return _span(lowest, highest, neighbors)


def _weight(dy, points_ref, column_ref):
    """Returns Σ_k mask_k · hat(x_k − dx) · hat(y_k − dy), summed as a tree."""
    terms = [_hat(points_ref[k, Y] - dy) * column_ref[k] for k in range(POINTS)]
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return terms[0]


def _for_each_dx(points_ref, mask_ref, column_ref, value_ref, width, neighbors, visit):
    """Calls visit(dx, target, pairs) for every dx of this row and returns the last dx.

    `target` is dx in the lanes whose column has a neighbor at dx. In the other lanes it is far from
    all points. `pairs` are the rows of the value to visit. column_ref is filled for this dx.
    """
    row = pl.program_id(ROW_AXIS)
    bottom = value_ref.shape[0] - 1
    column = lax.rem(lax.broadcasted_iota(jnp.int32, mask_ref.shape[1:], 1), width)

    first_dx, last_dx = _span(points_ref[:, X], points_ref[:, X], neighbors)
    first_dx, last_dx = jnp.maximum(first_dx, 1 - width), jnp.minimum(last_dx, width - 1)

    @pl.loop(first_dx, last_dx + 1)
    def _(dx):
        inside = (column + dx >= 0) & (column + dx < width)
        target = jnp.where(inside, dx.astype(jnp.float32), FAR)
        top_dy, bottom_dy = _weigh_columns(target, points_ref, mask_ref, column_ref, neighbors)
        first = jnp.maximum(row + top_dy, 0)
        last = jnp.minimum(row + bottom_dy, bottom)
        visit(dx, target, RowPairs(row, first, last, bottom))

    return last_dx


class RowPairs(NamedTuple):
    """Lists rows of the value two at a time, because their chains of instructions are independent.

    Attributes:
      row: the row of output.
      first: the first row of the value.
      last: the last row of the value.
      bottom: the last row of the image.
    """

    row: jax.Array
    first: jax.Array
    last: jax.Array
    bottom: int

    @property
    def count(self):
        return jnp.maximum(0, lax.div(self.last - self.first + 2, 2))

    def __getitem__(self, index):
        """Returns (row, dy) of the upper and the lower row; dy is FAR for a row below the image."""
        y = self.first + 2 * index
        dy = (y - self.row).astype(jnp.float32)
        below = jnp.where(y < self.bottom, dy + 1, FAR)
        return (y, dy), (jnp.minimum(y + 1, self.bottom), below)


def _roll(x, columns):
    """Moves `x` to the right, by fewer columns than its width."""
    lanes = x.shape[-1]
    return pltpu.roll(x, lax.rem(columns + lanes, lanes), 1)


def forward_kernel(points_ref, mask_ref, value_ref, output_ref, column_ref, total_ref, *, width):
    channels = range(value_ref.shape[1])
    total_ref[...] = jnp.zeros_like(total_ref)

    def visit(dx, target, pairs):
        # The running sums move along from one dx to the next. They stay aligned with the columns
        # of the value, so only the weights have to be rolled.
        for c in channels:
            total_ref[c] = pltpu.roll(total_ref[c], 1, 1)

        @pl.loop(0, pairs.count)
        def _(pair):
            (above, above_dy), (below, below_dy) = pairs[pair]
            upper = _roll(_weight(above_dy, points_ref, column_ref), dx)
            lower = _roll(_weight(below_dy, points_ref, column_ref), dx)
            for c in channels:
                total_ref[c] += upper * value_ref[above, c].astype(jnp.float32) + (
                    lower * value_ref[below, c].astype(jnp.float32)
                )

    last_dx = _for_each_dx(points_ref, mask_ref, column_ref, value_ref, width, OF_VALUES, visit)
    for c in channels:
        output_ref[c] = _roll(total_ref[c], -last_dx).astype(output_ref.dtype)


def backward_kernel(
    points_ref,
    mask_ref,
    value_ref,
    cotangent_ref,
    value_gradient_ref,
    points_gradient_ref,
    mask_gradient_ref,
    column_ref,
    cotangent_at_dx_ref,
    above_ref,
    below_ref,
    *,
    width,
):
    """Computes the gradients of the value, the points and the mask.

    The value's gradient is complete after the last row. The gradients of the points and the mask
    are complete after their own row.

    For every point and dx, above_ref and below_ref hold the products at floor(y_k) and at the row
    below. Interpolated as the sample is, they give the gradient along x. Their difference gives the
    gradient along y. At whole numbers this is the derivative to the right and downwards, as in
    `reference`.
    """
    channels = range(value_ref.shape[1])

    @pl.when(pl.program_id(ROW_AXIS) == 0)
    def _():
        @pl.loop(0, value_gradient_ref.shape[0])
        def _(y):
            value_gradient_ref[y] = jnp.zeros_like(value_gradient_ref[y])

    points_gradient_ref[...] = jnp.zeros_like(points_gradient_ref)
    mask_gradient_ref[...] = jnp.zeros_like(mask_gradient_ref)

    def add_row(y, dy, dx):
        """Adds to the gradient of row y of the value and returns its products, 0 if dy is FAR."""
        weight = _roll(_weight(dy, points_ref, column_ref), dx)
        product = jnp.zeros_like(weight)
        for c in channels:
            cotangent = cotangent_at_dx_ref[c]
            product += cotangent * value_ref[y, c].astype(jnp.float32)
            value_gradient_ref[y, c] += weight * cotangent
        return jnp.where(dy < FAR, _roll(product, -dx), 0.0)

    def add_products(dx, pairs):
        above_ref[...] = jnp.zeros_like(above_ref)
        below_ref[...] = jnp.zeros_like(below_ref)
        for c in channels:
            cotangent_at_dx_ref[c] = _roll(cotangent_ref[c].astype(jnp.float32), dx)

        @pl.loop(0, pairs.count)
        def _(pair):
            (y, dy), (next_y, next_dy) = pairs[pair]
            upper, lower = add_row(y, dy, dx), add_row(next_y, next_dy, dx)
            for k in range(POINTS):
                whole = jnp.floor(points_ref[k, Y])
                above = jnp.where(whole == dy, upper, above_ref[k])
                below = jnp.where(whole == dy, lower, below_ref[k])
                above_ref[k] = jnp.where(whole == next_dy, lower, above)
                below_ref[k] = jnp.where(whole == dy - 1, upper, below)

    def add_point_gradients(target):
        for k in range(POINTS):
            distance, y = points_ref[k, X] - target, points_ref[k, Y]
            change = below_ref[k] - above_ref[k]
            sample = above_ref[k] + (y - jnp.floor(y)) * change
            slope = jnp.where(distance < 0, sample, -sample)
            slope = jnp.where((distance >= -1) & (distance < 1), slope, 0.0)
            points_gradient_ref[k, X] += mask_ref[k] * slope
            points_gradient_ref[k, Y] += column_ref[k] * change
            mask_gradient_ref[k] += _hat(distance) * sample

    def visit(dx, target, pairs):
        @pl.when(pairs.count > 0)
        def _():
            add_products(dx, pairs)
            add_point_gradients(target)

    _for_each_dx(points_ref, mask_ref, column_ref, value_ref, width, OF_SLOPES, visit)
