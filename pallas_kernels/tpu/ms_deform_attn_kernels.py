"""The bodies of the kernels of multi-scale deformable attention on TPU: one tile of queries.

`ms_deform_attn` explains the algorithm and calls them.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.tpu.planes import LANES, SUBLANES

TILE = 256  # queries
NOWHERE = 2**20  # farther than any pixel; whole numbers up to this are exact in float32


class Level(NamedTuple):
    """Describes how the pixels of a level lie in blocks: strip by strip, from top to bottom.

    Attributes:
      height: the height of the level, in pixels.
      width: the width of the level, in pixels.
    """

    height: int
    width: int

    @property
    def strips(self):
        return pl.cdiv(self.width, LANES)

    @property
    def columns(self):
        """Returns the columns of a strip, in whole registers of bfloat16."""
        return pl.cdiv(self.width, self.strips * 2 * SUBLANES) * 2 * SUBLANES

    @property
    def rows(self):
        """Returns the rows of a block."""
        return max(1, LANES // self.columns)

    @property
    def blocks(self):
        """Returns the blocks of a strip."""
        return pl.cdiv(self.height, self.rows)


def _hat(u):
    return jnp.maximum(0.0, 1.0 - jnp.abs(u))


def _slope(u):
    """Returns the derivative of the hat, the right-sided one at its kinks."""
    return jnp.where((u >= -1) & (u < 1), jnp.where(u < 0, 1.0, -1.0), 0.0)


def _touched_blocks(level: Level, strip: int, x: Float[Array, "p q"], y: Float[Array, "p q"]):
    """Returns the first block of a strip that points touch, and the end of these blocks.

    A point touches a block if a pixel of the block is next to it.
    """
    left = strip * level.columns
    touched = (x >= left - 1) & (x < left + level.columns) & (y >= -1) & (y < level.height)
    top = jnp.floor(jnp.min(jnp.where(touched, y, NOWHERE))).astype(jnp.int32)
    bottom = jnp.floor(jnp.max(jnp.where(touched, y, -NOWHERE))).astype(jnp.int32) + 1
    first = lax.div(jnp.maximum(top, 0), level.rows)
    return first, lax.div(jnp.minimum(bottom, level.height - 1) + level.rows, level.rows)


def _for_each_strip(levels: tuple[Level, ...], x_ref, y_ref, body: Callable):
    """Calls body(index of the level, strip, first block, end) for every strip that points touch."""
    strips = [(i, strip) for i, level in enumerate(levels) for strip in range(level.strips)]
    # All ranges are computed before the first loop, so that their reductions overlap.
    ranges = [_touched_blocks(levels[i], strip, x_ref[i], y_ref[i]) for i, strip in strips]
    for (i, strip), (first, end) in zip(strips, ranges, strict=True):
        pl.when(first < end)(functools.partial(body, i, strip, first, end))


def _distances(level: Level, strip: int, x: Float[Array, "p q"]):
    """Returns, per point, how far it is right of each column: [columns, q]."""
    column = lax.broadcasted_iota(jnp.int32, (level.columns, x.shape[1]), 0)
    column = (column + strip * level.columns).astype(jnp.float32)
    return [x[p : p + 1] - column for p in range(x.shape[0])]


def _below(level: Level, block, y: Float[Array, "p q"]) -> Float[Array, "rows p q"]:
    """Returns, per row of a block, how far each point is below it."""
    row = lax.broadcasted_iota(jnp.int32, (level.rows, *y.shape), 0) + block * level.rows
    return y - row.astype(jnp.float32)


def _weights(scale: Float[Array, "rows p q"], hat_ref, columns) -> Float[Array, "k q"]:
    """Returns Σ_points scale · hat(x − column) for the pixels of a block."""
    terms = [scale[:, p : p + 1] * hat_ref[p, :columns] for p in range(scale.shape[1])]
    return sum(terms[1:], terms[0]).reshape(-1, scale.shape[2])


def _terms(weights, dtype):
    """Returns matrices that sum to the weights: two where one in bfloat16 would be too coarse."""
    if dtype != jnp.bfloat16:
        return [weights]
    high = weights.astype(dtype)
    return [high, (weights - high.astype(jnp.float32)).astype(dtype)]


def _matmul(a, b, a_axis, b_axis):
    """Contracts one axis of each matrix; the sum is in float32."""
    exact = a.dtype == jnp.float32
    return lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def forward_kernel(
    x_ref, y_ref, attention_ref, value_refs, output_ref, hat_ref, total_ref, *, levels
):
    total_ref[...] = jnp.zeros_like(total_ref)

    def add_strip(i, strip, first, end):
        level = levels[i]
        for p, distance in enumerate(_distances(level, strip, x_ref[i])):
            hat_ref[p, : level.columns] = _hat(distance)

        def add_block(block, total):
            scale = attention_ref[i] * _hat(_below(level, block, y_ref[i]))
            weights = _weights(scale, hat_ref, level.columns)
            value = value_refs[i][strip * level.blocks + block]
            return total + sum(_matmul(value, t, 1, 0) for t in _terms(weights, value.dtype))

        total_ref[...] = lax.fori_loop(first, end, add_block, total_ref[...])

    _for_each_strip(levels, x_ref, y_ref, add_strip)
    output_ref[...] = total_ref[...].astype(output_ref.dtype)


def _fold(x: Float[Array, "rows columns q"]) -> Float[Array, "rows 8 q"]:
    """Sums over columns, except for the last step within a register, which waits until the end."""
    rows, columns, queries = x.shape
    return x.reshape(rows, columns // SUBLANES, SUBLANES, queries).sum(1)


def backward_kernel(
    x_ref, y_ref, attention_ref, cotangent_ref, value_refs, *results_and_scratch, levels
):
    """Runs the loops of the forward pass again, with the transposed sums inside."""
    x_gradient_ref, y_gradient_ref, attention_gradient_ref = results_and_scratch[:3]
    value_gradient_refs, hat_ref, slope_ref, x_sum_ref, y_sum_ref, sum_ref = results_and_scratch[3:]
    points = x_ref.shape[1]

    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in value_gradient_refs:

            def clear_block(block, _, ref=ref):
                ref[block] = jnp.zeros_like(ref[block])
                return _

            lax.fori_loop(0, ref.shape[0], clear_block, 0)

    for ref in (x_gradient_ref, y_gradient_ref, attention_gradient_ref):
        ref[...] = jnp.zeros_like(ref)

    def add_strip(i, strip, first, end):
        level = levels[i]
        for p, distance in enumerate(_distances(level, strip, x_ref[i])):
            hat_ref[p, : level.columns] = _hat(distance)
            slope_ref[p, : level.columns] = _slope(distance)
        for ref in (x_sum_ref, y_sum_ref, sum_ref):
            ref[...] = jnp.zeros_like(ref)

        def add_block(block, _):
            cotangent, below = cotangent_ref[...], _below(level, block, y_ref[i])
            hat, slope = _hat(below), _slope(below)
            place = strip * level.blocks + block
            weights = _weights(attention_ref[i] * hat, hat_ref, level.columns)
            value_gradient_refs[i][place] += sum(
                _matmul(cotangent, t, 1, 1) for t in _terms(weights, cotangent.dtype)
            )
            product = _matmul(value_refs[i][place], cotangent, 0, 0)
            product = product.reshape(level.rows, level.columns, TILE)
            for p in range(points):
                inner = _fold(hat_ref[p, : level.columns] * product)
                across = _fold(slope_ref[p, : level.columns] * product)
                x_sum_ref[p] += (hat[:, p : p + 1] * across).sum(0)
                y_sum_ref[p] += (slope[:, p : p + 1] * inner).sum(0)
                sum_ref[p] += (hat[:, p : p + 1] * inner).sum(0)
            return _

        lax.fori_loop(first, end, add_block, 0)
        attention = attention_ref[i]
        x_gradient_ref[i] += attention * x_sum_ref[...].sum(1)
        y_gradient_ref[i] += attention * y_sum_ref[...].sum(1)
        attention_gradient_ref[i] += sum_ref[...].sum(1)

    _for_each_strip(levels, x_ref, y_ref, add_strip)
