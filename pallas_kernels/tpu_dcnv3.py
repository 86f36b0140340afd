"""DCNv3 on TPU: the "adaptive tent", Pallas kernels without a gather.

A bilinear sample is a sum over pixels, each weighted by a tent: hat(u) = max(0, 1 − |u|) of its
distance u to the sampling point along x, times that along y. A TPU cannot gather 16 channels per
point, but it multiplies whole rows. So, for one output row of many images and groups at a time,
the kernel loops over the displacements (dx, dy), in whole pixels, that this row samples at all:

    weight[column] = Σ_k mask_k · hat(x_k − dx) · hat(y_k − dy)
    output[row, column] += weight[column] · value[row + dy, column + dx]

where (x_k, y_k) is point k relative to its output pixel. The bounds of both loops come from the
offsets, inside the kernel, so every offset is exact; the time grows with their spread. The
backward pass runs the same loops: what it adds to the value's gradient has the same weights, and
the gradients of x_k, y_k and mask_k take from Σ_channels gradient · value, which is one row per
displacement, the pixels left of, right of, above and below the point.

In memory an *instance* is one group of one image. Lanes hold the columns of an instance (of
several, side by side, where images are narrow), sublanes hold 8 instances or rows of them, and
what is indexed by the loops, pixel rows and channels, comes before: [blocks, rows, k, 8, lanes].
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

POINTS = 9
SUBLANES, LANES = 8, 128
VMEM_BYTES = 60 * 2**20  # what a kernel may use; the smallest chips have 64 MiB
NOWHERE = 2**20  # farther than any pixel; whole numbers up to here are exact in float32


class Plan(NamedTuple):
    """How N·G instances of width W lie in the vector registers."""

    instances: int
    width: int
    side_by_side: int  # instances in the lanes of one sublane
    lanes: int  # their columns, rounded up to whole registers
    blocks: int

    @classmethod
    def make(cls, instances, width):
        side_by_side = max(1, LANES // width)
        lanes = -(-side_by_side * width // LANES) * LANES
        blocks = max(1, -(-instances // (SUBLANES * side_by_side)))  # an empty batch has one
        return cls(instances, width, side_by_side, lanes, blocks)


def _to_planes(x: Float[Array, "n h w g k"], plan: Plan) -> Float[Array, "b h k 8 l"]:
    n, height, width, groups, k = x.shape
    room = plan.blocks * SUBLANES * plan.side_by_side
    x = x.transpose(0, 3, 1, 4, 2).reshape(n * groups, height, k, width)
    x = jnp.pad(x, ((0, room - n * groups), (0, 0), (0, 0), (0, 0)))
    x = x.reshape(plan.blocks, SUBLANES, plan.side_by_side, height, k, width)
    x = x.transpose(0, 3, 4, 1, 2, 5).reshape(plan.blocks, height, k, SUBLANES, -1)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 0), (0, plan.lanes - x.shape[-1])))


def _from_planes(x: Float[Array, "b h c 8 l"], plan: Plan, groups) -> Float[Array, "n h w gc"]:
    _, height, channels, _, _ = x.shape
    x = x[..., : plan.side_by_side * plan.width]
    x = x.reshape(plan.blocks, height, channels, SUBLANES, plan.side_by_side, plan.width)
    x = x.transpose(0, 3, 4, 1, 2, 5).reshape(-1, height, channels, plan.width)
    x = x[: plan.instances].reshape(-1, groups, height, channels, plan.width)
    return x.transpose(0, 2, 4, 1, 3).reshape(-1, height, plan.width, groups * channels)


def _hat(u):
    return jnp.maximum(0.0, 1.0 - jnp.abs(u))


def _span(lowest, highest):
    """The first and the last whole number next to any of the values."""
    first, last = jnp.floor(jnp.min(lowest)), jnp.floor(jnp.max(highest)) + 1
    return first.astype(jnp.int32), last.astype(jnp.int32)


def _for_each_dx(x_ref, width, body):
    """Calls body(dx, target) for every dx of this row; `target` is dx in the lanes whose column has
    a neighbour dx away, and far from every point in the others."""
    first, last = _span(x_ref[...], x_ref[...])
    column = lax.rem(lax.broadcasted_iota(jnp.int32, x_ref.shape[1:], 1), width)

    def step(dx, _):
        inside = (column + dx >= 0) & (column + dx < width)
        body(dx, jnp.where(inside, dx.astype(jnp.float32), NOWHERE))
        return _

    lax.fori_loop(jnp.maximum(first, 1 - width), jnp.minimum(last, width - 1) + 1, step, 0)


def _weigh_columns(target, x_ref, y_ref, mask_ref, column_ref):
    """Fills column_ref with mask_k · hat(x_k − dx); the rows that points near dx sample."""
    lowest = jnp.full(target.shape, NOWHERE, jnp.float32)
    highest = -lowest
    for k in range(POINTS):
        distance = jnp.abs(x_ref[k] - target)
        column_ref[k] = jnp.maximum(0.0, 1.0 - distance) * mask_ref[k]
        lowest = jnp.where(distance <= 1, jnp.minimum(lowest, y_ref[k]), lowest)
        highest = jnp.where(distance <= 1, jnp.maximum(highest, y_ref[k]), highest)
    return _span(lowest, highest)


def _weight(dy, y_ref, column_ref):
    """Σ_k mask_k · hat(x_k − dx) · hat(y_k − dy)."""
    terms = [_hat(y_ref[k] - dy) * column_ref[k] for k in range(POINTS)]
    while len(terms) > 1:
        terms = [sum(terms[i : i + 2][1:], terms[i]) for i in range(0, len(terms), 2)]
    return terms[0]


def _forward_kernel(x_ref, y_ref, mask_ref, value_ref, output_ref, column_ref, sums_ref, total_ref, *, width):
    row = pl.program_id(2)
    channels, _, lanes = output_ref.shape
    total_ref[...] = jnp.zeros_like(total_ref)

    def add_dx(dx, target):
        top, bottom = _weigh_columns(target, x_ref, y_ref, mask_ref, column_ref)
        first = jnp.maximum(row + top, 0)
        last = jnp.minimum(row + bottom, value_ref.shape[0] - 2)
        shift = lax.rem(dx + lanes, lanes)

        def add_two_rows(pair, _):
            y = first + 2 * pair
            weights = [
                pltpu.roll(_weight((y + i - row).astype(jnp.float32), y_ref, column_ref), shift, 1)
                for i in range(2)
            ]
            for c in range(channels):
                sums_ref[c] += (
                    weights[0] * value_ref[y, c].astype(jnp.float32)
                    + weights[1] * value_ref[y + 1, c].astype(jnp.float32)
                )
            return _

        @pl.when(last >= first)
        def _():
            sums_ref[...] = jnp.zeros_like(sums_ref)
            lax.fori_loop(0, lax.div(last - first + 2, 2), add_two_rows, 0)
            for c in range(channels):
                total_ref[c] += pltpu.roll(sums_ref[c], lanes - shift, 1)

    _for_each_dx(x_ref, width, add_dx)
    output_ref[...] = total_ref[...].astype(output_ref.dtype)


def _backward_kernel(
    x_ref, y_ref, mask_ref, value_ref, cotangent_ref, *results_and_scratch, width
):
    """The forward pass's loops again, with the transposed sums inside."""
    value_gradient_ref, x_gradient_ref, y_gradient_ref, mask_gradient_ref = results_and_scratch[:4]
    column_ref, shifted_ref, upper_ref, lower_ref = results_and_scratch[4:]
    row = pl.program_id(2)
    channels, _, lanes = cotangent_ref.shape

    @pl.when(row == 0)
    def _():
        def clear_row(y, _):
            value_gradient_ref[y] = jnp.zeros_like(value_gradient_ref[y])
            return _

        lax.fori_loop(0, value_gradient_ref.shape[0], clear_row, 0)

    for ref in (x_gradient_ref, y_gradient_ref, mask_gradient_ref):
        ref[...] = jnp.zeros_like(ref)

    def add_dx(dx, target):
        top, bottom = _weigh_columns(target, x_ref, y_ref, mask_ref, column_ref)
        first = jnp.maximum(row + top, 0)
        last = jnp.minimum(row + bottom, value_ref.shape[0] - 2)
        shift = lax.rem(dx + lanes, lanes)

        def add_two_rows(pair, _):
            y = first + 2 * pair
            dy = (y - row).astype(jnp.float32)
            products = []
            for i in range(2):
                weight = pltpu.roll(_weight(dy + i, y_ref, column_ref), shift, 1)
                product = jnp.zeros(weight.shape, jnp.float32)
                for c in range(channels):
                    cotangent = shifted_ref[c]
                    product += cotangent * value_ref[y + i, c].astype(jnp.float32)
                    value_gradient_ref[y + i, c] += weight * cotangent
                products.append(pltpu.roll(product, lanes - shift, 1))
            for k in range(POINTS):
                whole = jnp.floor(y_ref[k])
                here = whole == dy
                upper = jnp.where(here, products[0], upper_ref[k])
                lower = jnp.where(here, products[1], lower_ref[k])
                upper_ref[k] = jnp.where(whole == dy + 1, products[1], upper)
                lower_ref[k] = jnp.where(whole == dy - 1, products[0], lower)
            return _

        @pl.when(last >= first)
        def _():
            upper_ref[...] = jnp.zeros_like(upper_ref)
            lower_ref[...] = jnp.zeros_like(lower_ref)
            for c in range(channels):
                shifted_ref[c] = pltpu.roll(cotangent_ref[c].astype(jnp.float32), shift, 1)
            lax.fori_loop(0, lax.div(last - first + 2, 2), add_two_rows, 0)
            for k in range(POINTS):
                distance = x_ref[k] - target
                change = lower_ref[k] - upper_ref[k]
                inner = upper_ref[k] + (y_ref[k] - jnp.floor(y_ref[k])) * change
                slope = jnp.where(distance < 0, inner, -inner)
                slope = jnp.where((distance >= -1) & (distance < 1), slope, 0.0)
                mask_gradient_ref[k] += _hat(distance) * inner
                x_gradient_ref[k] += mask_ref[k] * slope
                y_gradient_ref[k] += column_ref[k] * change

    _for_each_dx(x_ref, width, add_dx)


def _call(kernel, *, name, grid, in_specs, out_specs, out_shape, scratch_shapes, semantics):
    """The pallas_call as a function; interpreted wherever it is not lowered for TPU."""
    call = functools.partial(
        pl.pallas_call,
        kernel,
        name=name,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=scratch_shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics, vmem_limit_bytes=VMEM_BYTES
        ),
    )

    def run(*arguments):
        return lax.platform_dependent(*arguments, tpu=call(), default=call(interpret=True))

    return run


def _row_spec(k, lanes, index):
    return pl.BlockSpec((None, None, k, SUBLANES, lanes), index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sample(
    value: Float[Array, "b h+1 c 8 l"],
    x: Float[Array, "b h 9 8 l"],
    y: Float[Array, "b h 9 8 l"],
    mask: Float[Array, "b h 9 8 l"],
    width: int,
) -> Float[Array, "b h c 8 l"]:
    """The operator on planes. The value has a row of zeros below the image."""
    return _forward(value, x, y, mask, width)[0]


def _forward(value, x, y, mask, width):
    blocks, height, _, _, lanes = x.shape
    channels = value.shape[2]
    block = channels
    point = _row_spec(POINTS, lanes, lambda b, s, y: (b, y, 0, 0, 0))
    plane = pl.BlockSpec(
        (None, height + 1, block, SUBLANES, lanes),
        lambda b, s, y: (b, 0, s, 0, 0),
        pipeline_mode=pl.Buffered(1),
    )
    output = _call(
        functools.partial(_forward_kernel, width=width),
        name="dcnv3_forward",
        grid=(blocks, channels // block, height),
        in_specs=[point, point, point, plane],
        out_specs=_row_spec(block, lanes, lambda b, s, y: (b, y, s, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((blocks, height, channels, SUBLANES, lanes), value.dtype),
        scratch_shapes=[
            pltpu.VMEM((POINTS, SUBLANES, lanes), jnp.float32),
            pltpu.VMEM((block, SUBLANES, lanes), jnp.float32),
            pltpu.VMEM((block, SUBLANES, lanes), jnp.float32),
        ],
        semantics=("parallel", "parallel", "parallel"),
    )(x, y, mask, value)
    return output, (value, x, y, mask)


def _backward(width, residuals, cotangent):
    value, x, y, mask = residuals
    blocks, height, _, _, lanes = x.shape
    channels = value.shape[2]
    block = channels
    point = _row_spec(POINTS, lanes, lambda b, s, y: (b, y, 0, 0, 0))
    plane = pl.BlockSpec(
        (None, height + 1, block, SUBLANES, lanes),
        lambda b, s, y: (b, 0, s, 0, 0),
        pipeline_mode=pl.Buffered(1),
    )
    scratch = pltpu.VMEM((POINTS, SUBLANES, lanes), jnp.float32)
    partial = pl.BlockSpec(
        (None, None, None, POINTS, SUBLANES, lanes), lambda b, s, y: (s, b, y, 0, 0, 0)
    )
    partial_shape = jax.ShapeDtypeStruct((channels // block, *x.shape), jnp.float32)
    gradient, *gradients = _call(
        functools.partial(_backward_kernel, width=width),
        name="dcnv3_backward",
        grid=(blocks, channels // block, height),
        in_specs=[
            point,
            point,
            point,
            plane,
            _row_spec(block, lanes, lambda b, s, y: (b, y, s, 0, 0)),
        ],
        out_specs=[plane, partial, partial, partial],
        out_shape=[jax.ShapeDtypeStruct(value.shape, jnp.float32)] + [partial_shape] * 3,
        scratch_shapes=[
            scratch,
            pltpu.VMEM((block, SUBLANES, lanes), jnp.float32),
            scratch,
            scratch,
        ],
        semantics=("parallel", "parallel", "arbitrary"),
    )(x, y, mask, value, cotangent)
    return gradient.astype(value.dtype), *(g.sum(0) for g in gradients)


_sample.defvjp(_forward, _backward)


def dcnv3(value, offset, mask, *, kernel_size, stride, padding, dilation, groups, offset_scale):
    """`reference.dcnv3` on TPU, for the geometry of every published model; sums in float32.

    Raises:
      ValueError: for another geometry than kernel 3, stride 1, padding 1, dilation 1.
    """
    if (kernel_size, stride, padding, dilation) != (3, 1, 1, 1):
        raise ValueError(
            "dcnv3 on TPU: kernel_size 3, stride 1, padding 1 and dilation 1 only, not"
            f" {kernel_size}, {stride}, {padding} and {dilation}; the kernel takes output pixels and"
            " value pixels to be the same grid; implementation='xla' takes any"
        )
    n, height, width, channels = value.shape
    plan = Plan.make(n * groups, width)
    value = value.reshape(n, height, width, groups, channels // groups)
    below = jnp.pad(value, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    mask = mask.reshape(n, height, width, groups, POINTS).astype(jnp.float32)
    offset = offset.reshape(n, height, width, groups, POINTS, 2).astype(jnp.float32)
    axis = jnp.arange(3, dtype=jnp.float32) - 1
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(POINTS, 2)
    relative = (offset + grid) * offset_scale
    # Strictly outside the image is far enough: there neither values nor gradients remain.
    x = jnp.clip(relative[..., 0], -width - 1.0, width + 1.0)
    y = jnp.clip(relative[..., 1], -height - 1.0, height + 1.0)
    planes = (_to_planes(array, plan) for array in (below, x, y, mask))
    return _from_planes(_sample(*planes, width), plan, groups)
