"""DCNv3 on TPU: the "adaptive tent", Pallas kernels without a gather.

`pallas_kernels/reference.py` defines the operator.

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

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.tpu.dcnv3_kernels import POINTS, backward_kernel, forward_kernel
from pallas_kernels.tpu.planes import LANES, SUBLANES, from_planes, to_planes

VMEM_BYTES = 60 * 2**20  # limit of a kernel; the smallest chips have 64 MiB
PLANE_BYTES = 52 * 2**20  # the part of it for whole images; the rest is for single rows


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
    value: Float[Array, "b h c s l"],
    points: Float[Array, "b h 9 2 s l"],
    mask: Float[Array, "b h 9 s l"],
    width: int,
) -> Float[Array, "b h c s l"]:
    """Computes DCNv3 on planes; points are relative to their output pixel."""
    return _forward(value, points, mask, width)[0]


def _channel_bytes(value) -> int:
    """Returns the bytes of one channel of eight groups of an image."""
    _, rows, _, _, lanes = value.shape
    return rows * SUBLANES * lanes * value.dtype.itemsize


def forward_channels(value: Float[Array, "b h c s l"]) -> int:
    """Returns how many channels one pass of the forward kernel takes."""
    return _channels_at_once(value.shape[2], _channel_bytes(value))


def backward_channels(value: Float[Array, "b h c s l"]) -> int:
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
        functools.partial(forward_kernel, width=width),
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
        functools.partial(backward_kernel, width=width),
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
) -> tuple[Float[Array, "b h c s l"], Float[Array, "b h 9 2 s l"], Float[Array, "b h 9 s l"]]:
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
