"""The Pallas kernels of self-attention on TPU.

A kernel runs over blocks of queries, for as many heads at once as fit into 128 lanes. At the first
block it copies queries, keys and values to where it needs them (`attention_lanes`). At the first
block of the first image it makes the blocks of bias (`attention_bias`), which serve all images.
Each block goes through the strips of keys, a group of them at a time.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.tpu.attention_bias import bias_places, clear_bias, make_bias, sum_bias
from pallas_kernels.tpu.attention_lanes import (
    FOR_PATCHES,
    FOR_TOKEN,
    LN2,
    LOW,
    combine,
    copy,
    heads_of,
    lay_out_keys,
    lay_out_queries,
    scale,
    split,
)
from pallas_kernels.tpu.attention_layout import LANES

ROWS_BY_ROWS, ROWS_BY_COLUMNS, COLUMNS_BY_COLUMNS = (((1,), (1,)), ((1,), (0,)), ((0,), (0,)))


def _multiply(left, right, contracted):
    """Returns a product of matrices in float32; `contracted` are the axes that it sums over."""
    exact = left.dtype == jnp.float32
    return lax.dot_general(
        left,
        right,
        (contracted, ((), ())),
        precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _group(index, block, layout):
    """Returns the keys of a group of strips, and the blocks of their biases."""
    size = layout.group * LANES
    strips = [index * layout.group + strip for strip in range(layout.group)]
    return pl.ds(pl.multiple_of(index * size, size), size), bias_places(block, strips, layout)


def _columns(strip):
    """Returns the lanes of a strip of a group."""
    return slice(strip * LANES, (strip + 1) * LANES)


def _scores(query, key, bias, places):
    """Returns the scores of a group of strips, each [queries, 128]."""
    scores = _multiply(query, key, ROWS_BY_ROWS)
    scores = [scores[:, _columns(strip)] for strip in range(len(places))]
    if bias is None:
        return scores
    return [x + bias[place].reshape(x.shape) for x, place in zip(scores, places, strict=True)]


def _queries(block, layout):
    """Returns the rows of a block of queries."""
    return pl.ds(pl.multiple_of(block * layout.queries, layout.queries), layout.queries)


def _attend(queries, keys, values, biases, block, layout):
    """Attends from some queries to all keys.

    Args:
      queries: for every head, [rows, 128] with its columns.
      keys: references to the keys of every head.
      values: the same for the values.
      biases: references to the blocks of bias of every head, or None for each.
      block: the index of the block of queries.
      layout: where everything lies.

    Returns:
      For every head, the largest score [rows, 1], and the sum of weights times values [rows, 128].
    """

    def add_group(index, carry):
        here, places = _group(index, block, layout)
        result = []
        for head, (maximum, total) in enumerate(carry):
            scores = _scores(queries[head], keys[head][here], biases[head], places)
            largest = scores[0]
            for x in scores[1:]:
                largest = jnp.maximum(largest, x)
            new = jnp.maximum(maximum, jnp.max(largest, axis=1, keepdims=True))
            weights = [jnp.exp2(x - new).astype(queries[head].dtype) for x in scores]
            weights = jnp.concatenate(weights, axis=1)
            total = total * jnp.exp2(maximum - new)
            total += _multiply(weights, values[head][here], ROWS_BY_COLUMNS)
            result.append((new, total))
        return tuple(result)

    rows = queries[0].shape[0]
    start = jnp.full((rows, 1), LOW, jnp.float32), jnp.zeros((rows, LANES), jnp.float32)
    return lax.fori_loop(0, layout.groups, add_group, (start,) * len(queries))


def _finish(attended, number, heads, output, log_sum):
    """Writes the output [rows, 128] of some queries, and the columns 1 and −L of all heads."""
    outputs, columns = [], jnp.zeros(log_sum.shape, jnp.float32)
    for head, (maximum, total) in zip(heads, attended, strict=True):
        weight = head.column(total)
        outputs.append(total / weight)
        parts = split(-(maximum + jnp.log2(weight)), log_sum.dtype)
        parts = {number: 1} | dict(enumerate(parts, start=1))
        columns += head.with_columns(jnp.zeros_like(columns), parts)
    output[...] = combine(heads, outputs).astype(output.dtype)
    log_sum[...] = columns.astype(log_sum.dtype)


def forward_kernel(refs, layout):
    """Writes the output of some heads, and the columns 1 and −L of their queries.

    Args:
      refs: references, by the names that `attention` gives them.
      layout: where everything lies.
    """
    heads = heads_of(layout)
    nothing = [None] * len(heads)
    image, block = pl.program_id(1), pl.program_id(2)
    first_head = pl.program_id(0) * len(heads)

    @pl.when(block == 0)
    def _():
        lay_out_queries(refs.query, refs.queries, refs.token, layout, scale(layout))
        biases = refs.biases if layout.has_bias else None
        lay_out_keys(refs.key, refs.value, refs.keys, refs.values, biases, first_head, layout)

    bias = _make_bias(refs, image, block, layout) if layout.has_bias else nothing
    here = _queries(block, layout)
    queries = [head.with_columns(refs.queries[here], {FOR_PATCHES: 1}) for head in heads]
    attended = _attend(queries, refs.keys, refs.values, bias, block, layout)
    _finish(attended, FOR_PATCHES, heads, refs.outputs.at[here], refs.log_sum)

    @pl.when(block == layout.blocks - 1)
    def _():
        pieces = [(to, start, rows) for start, to, rows in layout.query_pieces]
        copy(refs.outputs, refs.output, pieces)
        if layout.has_bias:
            queries = [head.with_columns(refs.token[...], {FOR_TOKEN: 1}) for head in heads]
            attended = _attend(queries, refs.keys, refs.values, nothing, block, layout)
            _finish(attended, FOR_TOKEN, heads, refs.token, refs.token_log_sum)
            copy(refs.token, refs.output, [(0, 0, 1)])


def _make_bias(refs, image, block, layout):
    """Makes the blocks of bias at the first block of the first image, and returns them by head."""
    bias = [refs.bias.at[head] for head in range(refs.bias.shape[0])]

    @pl.when((image == 0) & (block == 0))
    def _():
        for head, blocks in enumerate(bias):
            make_bias(refs.tables.at[head], blocks, layout)

    return bias


def _transpose(queries, cotangents, refs, biases, block, layout):
    """Adds up the gradients of scores for keys, values and biases.

    Args:
      queries: for every head, [rows, 128] with its columns.
      cotangents: the same for the gradient of the output.
      refs: references to the keys and values of every head, and to the sums.
      biases: for every head, references to the blocks of bias and their gradient, or None.
      block: the index of the block of queries.
      layout: where everything lies.

    Returns:
      For every head, the gradient of the queries [rows, 128].
    """

    def add_group(index, carry):
        here, places = _group(index, block, layout)
        result = []
        for head, total in enumerate(carry):
            query, cotangent = queries[head], cotangents[head]
            bias, bias_sum = biases[head] or (None, None)
            scores = _scores(query, refs.keys[head][here], bias, places)
            slopes = _multiply(cotangent, refs.values[head][here], ROWS_BY_ROWS)
            weights, gradients = [], []
            for strip, x in enumerate(scores):
                weight = jnp.exp2(x)
                gradient = weight * slopes[:, _columns(strip)]
                if bias_sum is not None:
                    shape = (layout.query_rows, -1, LANES)
                    bias_sum[places[strip]] += gradient.reshape(shape)
                weights.append(weight.astype(query.dtype))
                gradients.append(gradient.astype(query.dtype))
            weights, gradients = (jnp.concatenate(x, axis=1) for x in (weights, gradients))
            refs.key_sums[head][here] += _multiply(gradients, query, COLUMNS_BY_COLUMNS)
            refs.value_sums[head][here] += _multiply(weights, cotangent, COLUMNS_BY_COLUMNS)
            total += _multiply(gradients, refs.keys[head][here], ROWS_BY_COLUMNS)
            result.append(total)
        return tuple(result)

    start = (jnp.zeros(queries[0].shape, jnp.float32),) * len(queries)
    return lax.fori_loop(0, layout.groups, add_group, start)


def _cotangents(cotangent, output, heads):
    """Returns the cotangent of every head, [rows, 128] with its columns."""
    product = cotangent.astype(jnp.float32) * output.astype(jnp.float32)
    result = []
    for head in heads:
        mean = jnp.sum(jnp.where(head.own, product, 0.0), axis=1, keepdims=True)
        parts = split(-mean, cotangent.dtype)
        result.append(head.with_columns(cotangent, dict(enumerate(parts, start=1))))
    return result


def _clear(target):
    """Fills the gradient of keys or values with zeros, a strip at a time."""

    @pl.loop(0, target.shape[0] // LANES)
    def _(strip):
        target[pl.ds(pl.multiple_of(strip * LANES, LANES), LANES)] = jnp.zeros((LANES, LANES))


def backward_kernel(refs, layout):
    """Writes the gradients of the queries, keys and values of some heads, and of their biases.

    The gradient of the blocks of bias is summed over all images, and becomes that of the table at
    the last one.

    Args:
      refs: references, by the names that `attention` gives them.
      layout: where everything lies.
    """
    heads = heads_of(layout)
    nothing = [None] * len(heads)
    image, block = pl.program_id(1), pl.program_id(2)
    first_head = pl.program_id(0) * len(heads)

    @pl.when(block == 0)
    def _():
        lay_out_queries(refs.query, refs.queries, refs.token, layout, scale(layout))
        lay_out_queries(refs.output, refs.outputs, refs.token_output, layout)
        lay_out_queries(refs.cotangent, refs.cotangents, refs.token_cotangent, layout)
        biases = refs.biases if layout.has_bias else None
        lay_out_keys(refs.key, refs.value, refs.keys, refs.values, biases, first_head, layout)
        for total in (*refs.key_sums, *refs.value_sums):
            _clear(total)

    biases = nothing
    if layout.has_bias:
        bias_sums = [refs.bias_sum.at[head] for head in range(len(heads))]
        biases = list(zip(_make_bias(refs, image, block, layout), bias_sums, strict=True))

        @pl.when((image == 0) & (block == 0))
        def _():
            for total in bias_sums:
                clear_bias(total)

    def gradients(queries, log_sum, cotangents, outputs, biases):
        queries = [head.with_columns_of(queries, log_sum) for head in heads]
        cotangents = _cotangents(cotangents, outputs, heads)
        found = _transpose(queries, cotangents, refs, biases, block, layout)
        return (layout.channels**-0.5 * combine(heads, found)).astype(refs.query.dtype)

    here = _queries(block, layout)
    refs.gradients[here] = gradients(
        refs.queries[here], refs.log_sum[...], refs.cotangents[here], refs.outputs[here], biases
    )

    @pl.when(block == layout.blocks - 1)
    def _():
        pieces = [(to, start, rows) for start, to, rows in layout.query_pieces]
        copy(refs.gradients, refs.query_out, pieces)
        if layout.has_bias:
            refs.token[...] = gradients(
                refs.token[...],
                refs.token_log_sum[...],
                refs.token_cotangent[...],
                refs.token_output[...],
                nothing,
            )
            copy(refs.token, refs.query_out, [(0, 0, 1)])
            _write_biases(refs.key_sums, heads, refs.biases_out, layout)
        _write_keys(refs, heads, layout)

    if layout.has_bias:

        @pl.when((image == pl.num_programs(1) - 1) & (block == layout.blocks - 1))
        def _():
            for head, total in enumerate(bias_sums):
                sum_bias(total, refs.tables_out.at[head], layout)


def _write_keys(refs, heads, layout):
    """Writes the gradients of keys and values."""
    pieces = list(layout.key_pieces)
    if layout.has_bias:
        pieces.append((0, layout.token_place, 1))
    for start, to, rows in pieces:
        keys = [LN2 * total[to : to + rows] for total in refs.key_sums]
        values = [total[to : to + rows] for total in refs.value_sums]
        for target, parts in ((refs.key_out, keys), (refs.value_out, values)):
            target[start : start + rows] = combine(heads, parts).astype(target.dtype)


def _write_biases(key_sums, heads, target, layout):
    """Writes the gradients of the three biases of the class token, in lanes 3 · head and on."""
    result = jnp.zeros(target.shape, jnp.float32)
    lane = heads[0].lane
    for index, (head, total) in enumerate(zip(heads, key_sums, strict=True)):
        token = total[layout.token_place : layout.token_place + 1]
        of_token = head.column(token, FOR_TOKEN)
        everything = jnp.sum(total[...], axis=0, keepdims=True)
        to_patch = head.column(everything, FOR_TOKEN) - of_token
        from_patch = head.column(token, FOR_PATCHES)
        for number, x in enumerate((to_patch, from_patch, of_token)):
            result += jnp.where(lane == 3 * index + number, x, 0.0)
    target[...] = result
