"""Lays the queries, keys and values of some heads out in the registers of a TPU.

The matrix unit multiplies 128 columns in the time of one head's 64. So the lanes of the other heads
serve for sums that would otherwise cost an instruction for every pair of a query and a key. Behind
the lanes of a head come, in the lanes of its neighbor:

    lane                 0                1, 2, 3    4
    query                1                −L         0
    query, class token   0                −L         1
    key                  bias             1          bias for the class token as query
    value                1                1          0
    cotangent            0                −Δ         0

    scores      query · key      logits · log₂e, so that a weight is a power of two, minus L
    output      weights · value  with the sum of the weights in lane 0
    Δ           Σ cotangent · output, so that cotangent · value is the gradient of a weight, minus Δ

L, the log₂ of the sum of a query's powers, is 0 in the forward pass. In bfloat16, L and Δ are sums
of three numbers, which makes them as exact as in float32.
"""

import math

import jax.numpy as jnp
from jax import lax

from pallas_kernels.tpu.attention_layout import LANES

LOW = -1e30  # the score of a key that does not exist
LN2 = math.log(2)
SUMMANDS = 3  # of L and Δ
FOR_PATCHES, FOR_TOKEN = 0, 1 + SUMMANDS  # lanes of the biases of keys


def split(x, dtype):
    """Returns numbers of a type whose sum is a float32 number."""
    parts = []
    for _ in range(SUMMANDS):
        part = x.astype(dtype)
        parts.append(part)
        x -= part.astype(jnp.float32)
    return parts


class Head:
    """The lanes of one of the heads that a kernel computes at once.

    Attributes:
      lane: the number of every lane, int [1, 128].
      own: which lanes belong to the head, bool [1, 128].
      behind: the first lane behind it.
    """

    def __init__(self, index, channels):
        first = index * channels
        self.lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        self.own = (self.lane >= first) & (self.lane < first + channels)
        self.behind = (first + channels) % LANES

    def column(self, x, number=0):
        """Returns a column [rows, 1] of the lanes behind the head."""
        return x[:, self.behind + number : self.behind + number + 1]

    def with_columns(self, x, columns):
        """Returns the head's lanes of `x`, with columns behind them and zeros elsewhere.

        Args:
          x: [rows, 128].
          columns: by number, scalars or [rows, 1].
        """
        others = jnp.zeros(x.shape, jnp.float32)
        for number, column in columns.items():
            column = column if isinstance(column, int | float) else column.astype(jnp.float32)
            others = jnp.where(self.lane == self.behind + number, column, others)
        return jnp.where(self.own, x.astype(jnp.float32), others).astype(x.dtype)

    def with_columns_of(self, x, source):
        """Returns the head's lanes of `x`, with the columns that `source` has for it."""
        number = self.lane - self.behind
        others = jnp.where((number >= 0) & (number <= FOR_TOKEN), source.astype(jnp.float32), 0.0)
        return jnp.where(self.own, x.astype(jnp.float32), others).astype(x.dtype)


def heads_of(layout):
    """Returns the heads that are computed at once."""
    return [Head(index, layout.channels) for index in range(LANES // layout.channels)]


def combine(heads, values):
    """Returns the lanes of every head from its own array [rows, 128]."""
    result = values[0].astype(jnp.float32)
    for head, x in zip(heads[1:], values[1:], strict=True):
        result = jnp.where(head.own, x, result)
    return result


def copy(source, target, pieces, function=lambda x: x):
    """Copies rows; `pieces` are (first row of the source, first row of the target, rows)."""
    for start, to, rows in pieces:
        target[to : to + rows] = function(source[start : start + rows]).astype(target.dtype)


def scale(layout):
    """Returns a function that scales queries, so that scores are logits · log₂e."""
    factor = layout.channels**-0.5 / LN2
    return lambda x: x.astype(jnp.float32) * factor


def lay_out_queries(source, target, token, layout, function=lambda x: x):
    """Copies the queries of patches into rows of whole blocks, and that of the class token."""
    for start, rows in layout.query_gaps:
        target[start : start + rows] = jnp.zeros((rows, LANES), target.dtype)
    copy(source, target, layout.query_pieces, function)
    if layout.has_bias:
        token[...] = jnp.zeros(token.shape, token.dtype)
        copy(source, token, [(0, 0, 1)], function)


def lay_out_keys(key, value, keys, values, biases, first_head, layout):
    """Copies keys and values into strips, for every head on its own.

    Args:
      key: reference to the keys [tokens, 128] of some heads.
      value: the same for the values.
      keys: references to [places, 128] of each head.
      values: the same for the values.
      biases: reference to the biases of the class token, [3, heads], or None.
      first_head: the first of the heads that are computed at once.
      layout: where everything lies.
    """
    ones = dict.fromkeys(range(1, 1 + SUMMANDS), 1)
    for index, head in enumerate(heads_of(layout)):
        for start, rows in layout.key_gaps:
            nothing = jnp.zeros((rows, LANES), key.dtype)
            low = {FOR_PATCHES: LOW, FOR_TOKEN: LOW}
            keys[index][start : start + rows] = head.with_columns(nothing, ones | low)
            values[index][start : start + rows] = nothing
        to_patch = {}
        if layout.has_bias:
            to_patch, from_patch, of_token = (biases[i, first_head + index] for i in range(3))
            to_patch = {FOR_TOKEN: to_patch}
            here = slice(layout.token_place, layout.token_place + 1)
            columns = ones | {FOR_PATCHES: from_patch, FOR_TOKEN: of_token}
            keys[index][here] = head.with_columns(key[0:1], columns)
            values[index][here] = head.with_columns(value[0:1], ones | {FOR_PATCHES: 1})
        copy(
            key,
            keys[index],
            layout.key_pieces,
            lambda x, head=head, more=to_patch: head.with_columns(x, ones | more),
        )
        copy(
            value,
            values[index],
            layout.key_pieces,
            lambda x, head=head: head.with_columns(x, ones | {FOR_PATCHES: 1}),
        )
