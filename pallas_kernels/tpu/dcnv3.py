"""DCNv3 on TPU: the "adaptive tent", Pallas kernels without a gather.

A bilinear sample is a sum over pixels. Each pixel is weighted by two tents,
hat(u) = max(0, 1 − |u|), of its distance to the sampling point along x and along y. A TPU is slow
at gathering a few channels from scattered places, but it multiplies whole rows of pixels at once.
The kernel therefore handles one row of output at a time. It goes through the displacements (dx,
dy), in whole pixels, that occur in this row:

    weight[column] = Σ_k mask_k · hat(x_k − dx) · hat(y_k − dy)
    output[row, column] += weight[column] · value[row + dy, column + dx]

Here (x_k, y_k) is sampling point k relative to its output pixel. The kernel takes the bounds of
both loops from the offsets, so any offset is exact, and the time grows with their spread. The
backward pass goes through the same displacements. The value's gradient has the same weights. The
gradients of a point follow from product = Σ_channels cotangent · value at its four pixels.

`planes` describes the layout in memory.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.tpu.planes import LANES, SUBLANES, from_planes, to_planes

POINTS = 9
X, Y = 0, 1
FAR = 2.0**20  # pixels; more than the distance between any two pixels of an image
VMEM_BYTES = 60 * 2**20  # limit of a kernel; the smallest chips have 64 MiB
PLANE_BYTES = 52 * 2**20  # the part of it for whole images; the rest is for single rows
ROW_AXIS = 3  # grid axes: images, blocks of instances, passes over the channels, rows


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


def _forward_kernel(points_ref, mask_ref, value_ref, output_ref, column_ref, total_ref, *, width):
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


def _backward_kernel(
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


def fits(height: int, width: int, dtype: jnp.dtype) -> bool:
    """Returns whether the forward kernel's memory holds at least one channel of an image."""
    lanes = pl.cdiv(width, LANES) * LANES
    return height * SUBLANES * lanes * jnp.dtype(dtype).itemsize <= PLANE_BYTES


def _channels_at_once(channels: int, bytes_each: int) -> int:
    """Returns how many channels fit in memory at once.

    The remaining channels take further passes over the displacements.
    """
    fitting = [c for c in range(1, channels + 1) if channels % c == 0]
    fitting = [c for c in fitting if c * bytes_each <= PLANE_BYTES]
    if not fitting:
        raise ValueError(
            f"dcnv3 on TPU: one channel of eight images of this size takes {bytes_each} bytes, but"
            f" only {PLANE_BYTES} are available; use smaller images or implementation='xla'"
        )
    return fitting[-1]


def _row_spec(*shape):
    """Specifies one row of the points, the same for every pass over the channels."""
    zeros = (0,) * (len(shape) - 2)
    return pl.BlockSpec((None, None, *shape), lambda b, i, s, y: (b, y, *zeros, i, 0))


def _channels_spec(channels, lanes):
    """Specifies one row of some channels."""
    block = (None, None, channels, SUBLANES, lanes)
    return pl.BlockSpec(block, lambda b, i, s, y: (b, y, s, i, 0))


def _image_spec(rows, channels, lanes, **options):
    """Specifies some channels of whole images, which stay in memory for all rows of output."""
    block = (None, rows, channels, SUBLANES, lanes)
    return pl.BlockSpec(block, lambda b, i, s, y: (b, 0, s, i, 0), **options)


def _partial_spec(*shape):
    """Specifies one row of the points' gradients, separate for every pass over the channels."""
    zeros = (0,) * (len(shape) - 2)
    return pl.BlockSpec((None, None, None, *shape), lambda b, i, s, y: (s, b, y, *zeros, i, 0))


def _call(kernel, arguments, *, rows, **options):
    """Runs the kernel, interpreted if it is lowered for another platform than TPU.

    Args:
      rows: "parallel" if rows of output may be computed in any order, else "arbitrary".
    """
    params = pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "parallel", rows),
        vmem_limit_bytes=VMEM_BYTES,
    )
    call = functools.partial(pl.pallas_call, kernel, compiler_params=params, **options)
    return lax.platform_dependent(*arguments, tpu=call(), default=call(interpret=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def sample(
    value: Float[Array, "b h c 8*i l"],
    points: Float[Array, "b h 9 2 8*i l"],
    mask: Float[Array, "b h 9 8*i l"],
    width: int,
) -> Float[Array, "b h c 8*i l"]:
    """Computes DCNv3 on planes; points are relative to their output pixel."""
    return _forward(value, points, mask, width)[0]


def _channel_bytes(value) -> int:
    """Returns the bytes of one channel of eight groups of an image."""
    _, rows, _, _, lanes = value.shape
    return rows * SUBLANES * lanes * value.dtype.itemsize


def forward_channels(value: Float[Array, "b h c 8*i l"]) -> int:
    """Returns how many channels one pass of the forward kernel takes."""
    return _channels_at_once(value.shape[2], _channel_bytes(value))


def backward_channels(value: Float[Array, "b h c 8*i l"]) -> int:
    """Returns how many channels one pass of the backward kernel takes.

    Besides the value, that kernel holds the value's gradient in float32. Both have two buffers.
    """
    both = _channel_bytes(value) * (value.dtype.itemsize + 4) // value.dtype.itemsize
    return _channels_at_once(value.shape[2], 2 * both)


def _forward(value, points, mask, width):
    images, rows, channels, sublanes, lanes = value.shape
    block = forward_channels(value)
    # If there is room for two images, the next one is fetched during the computation.
    buffers = 2 if 2 * block * _channel_bytes(value) <= PLANE_BYTES else 1
    output = _call(
        functools.partial(_forward_kernel, width=width),
        (points, mask, value),
        name="dcnv3_forward",
        rows="parallel",
        grid=(images, sublanes // SUBLANES, channels // block, rows),
        in_specs=[
            _row_spec(POINTS, 2, SUBLANES, lanes),
            _row_spec(POINTS, SUBLANES, lanes),
            _image_spec(rows, block, lanes, pipeline_mode=pl.Buffered(buffers)),
        ],
        out_specs=_channels_spec(block, lanes),
        out_shape=jax.ShapeDtypeStruct(value.shape, value.dtype),
        scratch_shapes=[
            pltpu.VMEM((POINTS, SUBLANES, lanes), jnp.float32),
            pltpu.VMEM((block, SUBLANES, lanes), jnp.float32),
        ],
    )
    return output, (value, points, mask)


def _backward(width, residuals, cotangent):
    value, points, mask = residuals
    images, rows, channels, sublanes, lanes = value.shape
    block = backward_channels(value)
    passes = channels // block
    value_gradient, points_gradients, mask_gradients = _call(
        functools.partial(_backward_kernel, width=width),
        (points, mask, value, cotangent),
        name="dcnv3_backward",
        rows="arbitrary",
        grid=(images, sublanes // SUBLANES, passes, rows),
        in_specs=[
            _row_spec(POINTS, 2, SUBLANES, lanes),
            _row_spec(POINTS, SUBLANES, lanes),
            _image_spec(rows, block, lanes),
            _channels_spec(block, lanes),
        ],
        out_specs=[
            _image_spec(rows, block, lanes),
            _partial_spec(POINTS, 2, SUBLANES, lanes),
            _partial_spec(POINTS, SUBLANES, lanes),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(value.shape, jnp.float32),
            jax.ShapeDtypeStruct((passes, *points.shape), jnp.float32),
            jax.ShapeDtypeStruct((passes, *mask.shape), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((POINTS, SUBLANES, lanes), jnp.float32),
            pltpu.VMEM((block, SUBLANES, lanes), jnp.float32),
            pltpu.VMEM((POINTS, SUBLANES, lanes), jnp.float32),
            pltpu.VMEM((POINTS, SUBLANES, lanes), jnp.float32),
        ],
    )
    return value_gradient.astype(value.dtype), points_gradients.sum(0), mask_gradients.sum(0)


sample.defvjp(_forward, _backward)


def planes(
    value: Float[Array, "n h w gc"],
    offset: Float[Array, "n h w g18"],
    mask: Float[Array, "n h w g9"],
    groups: int,
    offset_scale: float,
) -> tuple[Float[Array, "b h c 8*i l"], Float[Array, "b h 9 2 8*i l"], Float[Array, "b h 9 8*i l"]]:
    """Converts the arguments of `dcnv3` to what `sample` takes.

    Returns:
      The value, the points relative to their output pixel, and the mask, all as planes.
    """
    height, width = value.shape[1:3]
    value, offset, mask = (
        to_planes(x.reshape(*x.shape[:3], groups, -1))
        for x in (value, offset.astype(jnp.float32), mask.astype(jnp.float32))
    )
    offset = offset.reshape(*offset.shape[:2], POINTS, 2, *offset.shape[3:])
    axis = jnp.arange(3, dtype=jnp.float32) - 1
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1)  # x is the slow index
    points = (offset + grid.reshape(POINTS, 2, 1, 1)) * offset_scale
    # The bounds lie strictly outside the image, where values and gradients are zero.
    bound = jnp.array([width + 1.0, height + 1.0]).reshape(2, 1, 1)
    return value, jnp.clip(points, -bound, bound), mask


def dcnv3(value, offset, mask, *, kernel_size, stride, padding, dilation, groups, offset_scale):
    """Computes `reference.dcnv3` on TPU, for the geometry of all published models.

    Sums are in float32.

    Raises:
      ValueError: for another geometry, or an image too large for the chip's memory.
    """
    if (kernel_size, stride, padding, dilation) != (3, 1, 1, 1):
        raise ValueError(
            "dcnv3 on TPU: output and value must share one grid of pixels, so kernel_size, stride,"
            f" padding, dilation must be 3, 1, 1, 1, not {kernel_size}, {stride}, {padding},"
            f" {dilation}; take implementation='xla'"
        )
    n, height, width, channels = value.shape
    if not n:
        return value
    output = sample(*planes(value, offset, mask, groups, offset_scale), width)
    output = from_planes(output, (n, height, width, groups, channels // groups))
    return output.reshape(value.shape)
