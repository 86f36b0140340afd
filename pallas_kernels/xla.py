"""The portable path: XLA operations only, with a gradient of its own.

The forward pass is a scan over the K sampling points, each a gather of four rows of contiguous
channels; nothing of size K × channels is ever held. XLA's automatic gradient of it is many times
slower than the hand-written one below, which gathers the same rows once more.

Everything is flat: a *row* is the channels of one (image, y, x, group), and there are M = n·p·q·g
rows of output.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class Geometry(NamedTuple):
    """The static numbers of a DCNv3 call."""

    kernel_size: int
    stride: int
    padding: int
    dilation: int
    groups: int
    offset_scale: float


class Corner(NamedTuple):
    """One of the four pixels around each sampling point."""

    row: Int[Array, "m"]  # the row of the value that holds it
    inside: Bool[Array, "m"]  # whether it lies in the image
    weight_y: Float[Array, "m"]  # bilinear weight per axis, and its derivative
    weight_x: Float[Array, "m"]
    slope_y: float
    slope_x: float


def _corners(
    offset: Float[Array, "m 2"], grid: Float[Array, "2"], mask_shape, value_shape, geometry
) -> Iterator[Corner]:
    """The corners of one kernel point, of offsets (x, y) and the point's place in the grid."""
    _, height, width, _ = value_shape
    n, out_h, out_w, _ = mask_shape
    # Coordinates stay relative to the output pixel: floor and fraction of a small number are more
    # exact in float32 than those of a large absolute position.
    relative = (offset.astype(jnp.float32) + grid) * geometry.offset_scale
    whole = jnp.floor(relative)
    fraction = relative - whole
    # Far outside is far outside: the bound only keeps the conversion to int32 defined.
    bound = float(4 * (height + width + geometry.stride * (out_h + out_w) + geometry.padding))
    whole = jnp.clip(whole, -bound, bound).astype(jnp.int32)

    shape = (n, out_h, out_w, geometry.groups)
    image, y, x, group = (lax.broadcasted_iota(jnp.int32, shape, axis).ravel() for axis in range(4))
    first = geometry.dilation * (geometry.kernel_size - 1) // 2 - geometry.padding
    x0 = whole[:, 0] + geometry.stride * x + first
    y0 = whole[:, 1] + geometry.stride * y + first
    fx, fy = fraction[:, 0], fraction[:, 1]
    for y, weight_y, slope_y in ((y0, 1 - fy, -1.0), (y0 + 1, fy, 1.0)):
        for x, weight_x, slope_x in ((x0, 1 - fx, -1.0), (x0 + 1, fx, 1.0)):
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            pixel = (image * height + jnp.clip(y, 0, height - 1)) * width
            row = (pixel + jnp.clip(x, 0, width - 1)) * geometry.groups + group
            yield Corner(row, inside, weight_y, weight_x, slope_y, slope_x)


def _points(offset, mask, geometry):
    """Offsets [K, M, 2], masks [K, M] and places in the grid [K, 2], ready to be scanned."""
    points = geometry.kernel_size**2
    axis = jnp.arange(geometry.kernel_size, dtype=jnp.float32) * geometry.dilation
    axis -= geometry.dilation * (geometry.kernel_size - 1) // 2
    x, y = jnp.meshgrid(axis, axis, indexing="ij")  # x is the slow index
    return (
        offset.reshape(-1, points, 2).swapaxes(0, 1),
        mask.reshape(-1, points).T,
        jnp.stack([x.ravel(), y.ravel()], axis=-1),
    )


def _take(rows, index):
    return rows.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dcnv3(value, offset, mask, geometry):
    return _forward(value, offset, mask, geometry)[0]


def _forward(value, offset, mask, geometry):
    rows = value.reshape(-1, value.shape[-1] // geometry.groups)

    def add_point(total, point):
        point_offset, weight, grid = point
        for corner in _corners(point_offset, grid, mask.shape, value.shape, geometry):
            bilinear = jnp.where(corner.inside, corner.weight_y * corner.weight_x, 0.0)
            total += (bilinear * weight.astype(jnp.float32))[:, None] * _take(rows, corner.row)
        return total, None

    zero = jnp.zeros((mask.size // geometry.kernel_size**2, rows.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_point, zero, _points(offset, mask, geometry))
    output = total.reshape(*mask.shape[:3], value.shape[-1]).astype(value.dtype)
    return output, (value, offset, mask)


def _backward(geometry, residuals, cotangent):
    value, offset, mask = residuals
    rows = value.reshape(-1, value.shape[-1] // geometry.groups)
    cotangent = cotangent.reshape(-1, rows.shape[-1]).astype(jnp.float32)

    def channel_sum(corner):
        # The barrier keeps XLA:CPU from fusing gather, product and sum into one scalar loop. Six
        # times faster there, no cost elsewhere.
        taken = lax.optimization_barrier(_take(rows, corner.row))
        total = jnp.einsum("mc,mc->m", taken, cotangent, precision=lax.Precision.HIGHEST)
        return jnp.where(corner.inside, total, 0.0)

    def add_point(value_gradient, point):
        point_offset, weight, grid = point
        weight = weight.astype(jnp.float32)
        mask_gradient = x_gradient = y_gradient = jnp.zeros_like(weight)
        for corner in _corners(point_offset, grid, mask.shape, value.shape, geometry):
            bilinear = jnp.where(corner.inside, corner.weight_y * corner.weight_x, 0.0)
            value_gradient = value_gradient.at[corner.row].add(
                (bilinear * weight)[:, None] * cotangent, mode="promise_in_bounds"
            )
            inner = channel_sum(corner)
            mask_gradient += bilinear * inner
            x_gradient += corner.slope_x * corner.weight_y * inner
            y_gradient += corner.slope_y * corner.weight_x * inner
        scale = weight * geometry.offset_scale
        return value_gradient, (x_gradient * scale, y_gradient * scale, mask_gradient)

    zero = jnp.zeros(rows.shape, jnp.float32)
    value_gradient, (x_gradient, y_gradient, mask_gradient) = lax.scan(
        add_point, zero, _points(offset, mask, geometry)
    )
    offset_gradient = jnp.stack([x_gradient.T, y_gradient.T], axis=-1)
    return (
        value_gradient.reshape(value.shape).astype(value.dtype),
        offset_gradient.reshape(offset.shape).astype(offset.dtype),
        mask_gradient.T.reshape(mask.shape).astype(mask.dtype),
    )


_dcnv3.defvjp(_forward, _backward)


def dcnv3(value, offset, mask, *, kernel_size, stride, padding, dilation, groups, offset_scale):
    """`reference.dcnv3` in time and memory that training can afford; sums in float32."""
    geometry = Geometry(kernel_size, stride, padding, dilation, groups, offset_scale)
    return _dcnv3(value, offset, mask, geometry)
