"""Multi-scale deformable attention on TPU: the "adaptive tent matmul", without a gather.

A bilinear sample is a sum over pixels. Each pixel is weighted by a tent, hat(u) = max(0, 1 − |u|),
of its distance u to the sampling point along x, times that along y. A TPU cannot gather the few
channels of one head per point, but it multiplies matrices. For a tile of queries of one head, the
Pallas kernel therefore builds the weights of a block of pixels (some rows of a level). It
multiplies them with the values of the block:

    weights[pixel, query] = Σ_points attention · hat(x − column of pixel) · hat(y − row of pixel)
    output[channel, query] += value[channel, pixel] @ weights[pixel, query]

The blocks to visit reach from the first to the last row that the tile's points touch. The kernel
derives them from the locations, so every location is exact, and the time grows with the spread of a
tile's points. The backward pass visits the same blocks. There, cotangent @ weightsᵀ adds to the
gradient of the value. valueᵀ @ cotangent, summed over the pixels next to a point, gives the
gradients of that point.

In memory, an *instance* is one head of one image. Lanes hold queries, or the pixels of a block.
Sublanes hold points, channels, or the pixels of a block. A level that is wider than the lanes is
cut into *strips* of columns, and each strip is visited on its own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

SUBLANES, LANES = 8, 128
TILE = 256  # queries
VMEM_BYTES = 60 * 2**20  # limit of a kernel; the smallest chips have 64 MiB
LEVELS_BYTES = 52 * 2**20  # the part of it for the levels of the value
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


def _to_blocks(value: Float[Array, "b heads d hw"], level: Level) -> Float[Array, "i blocks d k"]:
    b, heads, depth, pixels = value.shape
    height, width = level.blocks * level.rows, level.strips * level.columns
    if level.width == width:
        value = jnp.pad(value, ((0, 0),) * 3 + ((0, height * width - pixels),))
    else:
        value = value.reshape(b * heads, depth, level.height, level.width)
        margin = (0, height - level.height), (0, width - level.width)
        value = jnp.pad(value, ((0, 0), (0, 0), *margin))
    if level.strips == 1:  # a block is a few whole rows, so that one copy suffices
        return value.reshape(b * heads, depth, level.blocks, -1).swapaxes(1, 2)
    value = value.reshape(
        b * heads, depth, level.blocks, level.rows, level.strips, level.columns
    ).transpose(0, 4, 2, 1, 3, 5)
    return value.reshape(b * heads, level.strips * level.blocks, depth, -1)


def _to_tiles(x: Float[Array, "b q heads l p"], fill) -> Float[Array, "i l p tiles"]:
    b, queries, heads, levels, points = x.shape
    x = jnp.moveaxis(x.astype(jnp.float32), 1, -1)
    x = jnp.pad(x, ((0, 0),) * 4 + ((0, -queries % TILE),), constant_values=fill)
    return x.reshape(b * heads, levels, points, -1)


@jax.custom_vjp
def _coordinates(
    locations: Float[Array, "b q heads l p 2"],
) -> tuple[Float[Array, "b q heads l p"], Float[Array, "b q heads l p"]]:
    """Returns x and y. Their gradients are stacked, which XLA can undo where they were stacked."""
    return locations[..., 0], locations[..., 1]


_coordinates.defvjp(
    lambda locations: (_coordinates(locations), None),
    lambda _, gradients: (jnp.stack(gradients, axis=-1),),
)


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


def _forward_kernel(
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


def _backward_kernel(
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


def _call(kernel, name, levels, inputs, outputs, scratch_shapes, tiles):
    """Runs a kernel for every tile of every instance, interpreted if it is not lowered for TPU.

    The kernel sees a tile of queries of each array, and all blocks of the arrays in a tuple.

    Args:
      tiles: "parallel" if the tiles of an instance are independent, else "arbitrary".
    """

    def spec(x):
        if isinstance(x, tuple):
            return tuple(pl.BlockSpec((None, *v.shape[1:]), lambda i, t: (i, 0, 0, 0)) for v in x)
        rest = x.shape[1:-1]
        return pl.BlockSpec((None, *rest, TILE), lambda i, t: (i, *(0 for _ in rest), t))

    instances, *_, queries = inputs[0].shape
    call = functools.partial(
        pl.pallas_call,
        functools.partial(kernel, levels=levels),
        name=name,
        grid=(instances, queries // TILE),
        in_specs=[spec(x) for x in inputs],
        out_specs=[spec(x) for x in outputs],
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch_shapes],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", tiles), vmem_limit_bytes=VMEM_BYTES
        ),
    )
    return lax.platform_dependent(*inputs, tpu=call(), default=call(interpret=True))


def _hat_shape(x, levels):
    return (x.shape[2], max(level.columns for level in levels), TILE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def sample(
    values: tuple[Float[Array, "i _ d _"], ...],
    x: Float[Array, "i l p q"],
    y: Float[Array, "i l p q"],
    attention: Float[Array, "i l p q"],
    levels: tuple[Level, ...],
) -> Float[Array, "i d q"]:
    """Computes the operator on blocks of pixels and tiles of queries; x and y are in pixels."""
    return _forward(values, x, y, attention, levels)[0]


def _forward(values, x, y, attention, levels):
    instances, *_, queries = x.shape
    depth = values[0].shape[2]
    (output,) = _call(
        _forward_kernel,
        "ms_deform_attn_forward",
        levels,
        inputs=(x, y, attention, values),
        outputs=[jax.ShapeDtypeStruct((instances, depth, queries), values[0].dtype)],
        scratch_shapes=[_hat_shape(x, levels), (depth, TILE)],
        tiles="parallel",
    )
    return output, (values, x, y, attention)


def _backward(levels, residuals, cotangent):
    values, x, y, attention = residuals
    hat, total = _hat_shape(x, levels), (x.shape[2], SUBLANES, TILE)
    point = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    *gradients, value_gradients = _call(
        _backward_kernel,
        "ms_deform_attn_backward",
        levels,
        inputs=(x, y, attention, cotangent, values),
        outputs=[point] * 3 + [tuple(jax.ShapeDtypeStruct(v.shape, jnp.float32) for v in values)],
        scratch_shapes=[hat, hat, total, total, total],
        tiles="arbitrary",  # tiles share the gradient of the value
    )
    return tuple(g.astype(values[0].dtype) for g in value_gradients), *gradients


sample.defvjp(_forward, _backward)


def blocks_and_tiles(
    value: Float[Array, "b s heads d"],
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Float[Array, "b q heads l p 2"],
    attention_weights: Float[Array, "b q heads l p"],
) -> tuple[
    tuple[Float[Array, "i _ d _"], ...],
    Float[Array, "i l p tiled"],
    Float[Array, "i l p tiled"],
    Float[Array, "i l p tiled"],
]:
    """Converts the arguments of `ms_deform_attn` to what `sample` takes.

    Returns:
      The values of each level, x and y in pixels, and the attention.
    """
    values, start = [], 0
    value = jnp.moveaxis(value, 1, -1)
    for level in make_levels(spatial_shapes):
        end = start + level.height * level.width
        values.append(_to_blocks(value[..., start:end], level))
        start = end
    x, y = (_to_tiles(x, fill=-1) for x in _coordinates(sampling_locations))
    height, width = np.array(spatial_shapes, np.float32).T[:, :, None, None]  # [l, 1, 1]
    # The bounds lie strictly outside the level, where values and gradients are zero.
    x = jnp.clip(x * width - 0.5, -2.0, width + 1)
    y = jnp.clip(y * height - 0.5, -2.0, height + 1)
    return tuple(values), x, y, _to_tiles(attention_weights, fill=0)


def fits(spatial_shapes: Sequence[tuple[int, int]], head_channels: int, dtype: jnp.dtype) -> bool:
    """Returns whether the forward kernel's memory holds all levels of two heads.

    The second head is the next one, which is fetched during the computation.
    """
    pixels = sum(
        level.strips * level.blocks * level.rows * level.columns
        for level in make_levels(spatial_shapes)
    )
    return 2 * pixels * head_channels * jnp.dtype(dtype).itemsize <= LEVELS_BYTES


def make_levels(spatial_shapes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Returns a `Level` for each (height, width)."""
    return tuple(Level(height, width) for height, width in spatial_shapes)


def ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights):
    """Computes `reference.ms_deform_attn` on TPU; sums are in float32."""
    b, queries, heads, _, _ = attention_weights.shape
    if not b * queries:
        return jnp.zeros((b, queries, heads * value.shape[-1]), value.dtype)
    arguments = blocks_and_tiles(value, spatial_shapes, sampling_locations, attention_weights)
    output = sample(*arguments, make_levels(spatial_shapes))
    return output[..., :queries].reshape(b, -1, queries).swapaxes(1, 2)
