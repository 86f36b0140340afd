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
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.choice import name_kernel_value
from pallas_kernels.tpu.ms_deform_attn_kernels import TILE, Level, backward_kernel, forward_kernel
from pallas_kernels.tpu.planes import SUBLANES

VMEM_BYTES = 60 * 2**20  # limit of a kernel; the smallest chips have 64 MiB
LEVELS_BYTES = 52 * 2**20  # the part of it for the levels of the value


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


@jax.custom_vjp
def _clip(x: Float[Array, "..."], upper: Float[Array, "..."]) -> Float[Array, "..."]:
    """Moves points that are farther outside of a level to −2 or `upper`, where values are zero.

    The gradients there are zero, too, so the rule for gradients needs no other zeros.
    """
    return jnp.clip(x, -2.0, upper)


_clip.defvjp(
    lambda x, upper: (_clip(x, upper), None),
    lambda _, gradient: (gradient, None),
)


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
    # A block that is recomputed keeps these, which take long to put into this order.
    values, x, y = jax.tree.map(name_kernel_value, (values, x, y))
    instances, *_, queries = x.shape
    depth = values[0].shape[2]
    (output,) = _call(
        forward_kernel,
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
        backward_kernel,
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
    levels = make_levels(spatial_shapes)
    ends = np.cumsum([level.height * level.width for level in levels])[:-1]
    parts = jnp.split(jnp.moveaxis(value, 1, -1), ends, axis=-1)
    values = map(_to_blocks, parts, levels)
    x, y = (_to_tiles(x, fill=-1) for x in _coordinates(sampling_locations))
    height, width = np.array(spatial_shapes, np.float32).T[:, :, None, None]  # [l, 1, 1]
    x, y = _clip(x * width - 0.5, width + 1), _clip(y * height - 0.5, height + 1)
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
