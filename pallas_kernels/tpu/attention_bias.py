"""The biases of relative positions in the memory of a TPU, made from their table and summed to it.

The bias of a row of queries y and a row of keys z depends on y − z alone:

    bias of (y, i) and (z, j) = table[y − z + height − 1, i − j + width − 1]

So there are few blocks of bias, each for one row of queries and one strip of keys: as many as their
differences. Block r is for a row of queries that is r − `blank_rows` − `last_key_row` below the
first row of the strip. Its row for column i of the queries is a row of the table, reversed and
moved by i lanes.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.tpu.attention_layout import LANES, Layout


def shifted_tables(patches: Float[Array, "g dy dx"], layout: Layout) -> Float[Array, "g k r l"]:
    """Returns the table for every row of a strip, with its rows where the blocks of bias are.

    Args:
      patches: the bias of every displacement, for `g` heads.
      layout: where everything lies.
    """
    reversed_rows = patches[:, :, ::-1]
    rows = layout.bias_shape[0]
    more = layout.table_shape[2] - patches.shape[2]
    shifted = []
    for row in range(layout.key_rows):
        before = layout.blank_rows + layout.last_key_row + row - patches.shape[1] // 2
        after = rows - before - patches.shape[1]
        shifted.append(lax.pad(reversed_rows, 0.0, ((0, 0, 0), (before, after, 0), (0, more, 0))))
    return jnp.stack(shifted, axis=1)


def _turn(row, layout):
    """Returns by how many lanes the table moves for a row of a strip and the first query."""
    return (row * layout.width - (layout.width - 1)) % layout.table_shape[2]


def _in_row(row, layout):
    """Returns which lanes of a strip hold keys of its row."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return (lane >= row * layout.width) & (lane < (row + 1) * layout.width)


def make_bias(tables, bias, layout):
    """Writes the blocks of bias of one head.

    Args:
      tables: reference to its shifted tables.
      bias: reference to the blocks.
      layout: where everything lies.
    """
    blocks, columns, _ = layout.bias_shape
    lanes = layout.table_shape[2]

    @pl.loop(0, blocks)
    def _(index):
        block = jnp.zeros((columns, LANES), bias.dtype)
        for row in range(layout.key_rows):
            table = pltpu.roll(tables[row, pl.ds(index, 1)], _turn(row, layout), 1)
            table = jnp.broadcast_to(table, (columns, lanes))
            # Every column of queries moves the table by one lane more than the one before.
            turned = pltpu.roll(table, 0, 1, stride=1, stride_axis=0)
            block = jnp.where(_in_row(row, layout), turned[:, :LANES], block)
        bias[index] = block


def clear_bias(bias):
    """Fills the blocks of bias of one head with zeros, one at a time."""

    @pl.loop(0, bias.shape[0])
    def _(row):
        bias[row] = jnp.zeros(bias.shape[1:], bias.dtype)


def sum_bias(bias, tables, layout):
    """Writes the gradient of the shifted tables of one head.

    Args:
      bias: reference to the gradient of the blocks of bias.
      tables: reference to the gradient of the tables.
      layout: where everything lies.
    """
    tables[...] = jnp.zeros(tables.shape, tables.dtype)
    lanes = layout.table_shape[2]
    more = lanes - LANES

    @pl.loop(0, layout.width)
    def _(column):
        block = bias[:, column]
        for row in range(layout.key_rows):
            of_row = jnp.where(_in_row(row, layout), block, 0.0)
            if more:
                blank = jnp.zeros((block.shape[0], more), block.dtype)
                of_row = jnp.concatenate([of_row, blank], axis=1)
            back = lax.rem(2 * lanes - _turn(row, layout) - column, lanes)
            tables[row] += pltpu.roll(of_row, back, 1)


def bias_places(block, strips, layout):
    """Returns where the blocks of bias between a block of queries and strips are.

    Args:
      block: the index of the block of queries.
      strips: the indices of the strips.
      layout: where everything lies.
    """
    places = []
    for strip in strips:
        start = block * layout.query_rows + layout.last_key_row - strip * layout.key_rows
        start += layout.blank_rows
        if layout.token_strip is not None:
            start = jnp.where(strip == layout.token_strip, 0, start)
        places.append(pl.ds(start, layout.query_rows))
    return places
