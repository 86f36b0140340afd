"""The portable path: XLA operations only, with a gradient of its own.

The forward pass is a scan over the K sampling points, each a gather of four rows of contiguous
channels; nothing of size K × channels is ever held. XLA's automatic gradient of it is many times
slower than the hand-written one below, which gathers the same rows once more.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Geometry(NamedTuple):
    """The static numbers of a DCNv3 call."""

    kernel_size: int
    stride: int
    padding: int
    dilation: int
    groups: int
    offset_scale: float


class Corner(NamedTuple):
    """One of the four pixels around a sampling point."""

    row: Int[Array, "n p q g"]  # index into the rows (image, y, x, group) of the value
    inside: Array  # whether that pixel lies in the image
    weight_y: Array  # bilinear weight and its derivative, per axis
    weight_x: Array
    slope_y: float
    slope_x: float


def _corners(offset_xy, grid_xy, value_shape, geometry):
    """The four corners of one kernel point, for offsets [n, p, q, g, 2] and its grid place [2]."""
    n, height, width, _ = value_shape
    _, out_h, out_w, groups, _ = offset_xy.shape
    # Coordinates stay relative to the output pixel: floor and fraction of a small number are more
    # exact in float32 than those of a large absolute position.
    relative = (offset_xy.astype(jnp.float32) + grid_xy) * geometry.offset_scale
    whole = jnp.floor(relative)
    fraction = relative - whole
    # Far outside is far outside: the bound only keeps the conversion to int32 defined.
    bound = float(4 * (height + width + geometry.stride * (out_h + out_w) + geometry.padding))
    whole = jnp.clip(whole, -bound, bound).astype(jnp.int32)

    half = geometry.dilation * (geometry.kernel_size - 1) // 2
    first = half - geometry.padding
    x0 = whole[..., 0] + (first + geometry.stride * jnp.arange(out_w, dtype=jnp.int32))[:, None]
    rows = (first + geometry.stride * jnp.arange(out_h, dtype=jnp.int32))[:, None, None]
    y0 = whole[..., 1] + rows
    image = jnp.arange(n, dtype=jnp.int32)[:, None, None, None]
    group = jnp.arange(groups, dtype=jnp.int32)
    fx, fy = fraction[..., 0], fraction[..., 1]
    for y, weight_y, slope_y in ((y0, 1 - fy, -1.0), (y0 + 1, fy, 1.0)):
        for x, weight_x, slope_x in ((x0, 1 - fx, -1.0), (x0 + 1, fx, 1.0)):
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            pixel = (image * height + jnp.clip(y, 0, height - 1)) * width
            row = (pixel + jnp.clip(x, 0, width - 1)) * groups + group
            yield Corner(row, inside, weight_y, weight_x, slope_y, slope_x)


def _grid(geometry: Geometry) -> Float[Array, "k 2"]:
    """The kernel grid as (x, y), x slow."""
    axis = jnp.arange(geometry.kernel_size, dtype=jnp.float32) * geometry.dilation
    axis -= geometry.dilation * (geometry.kernel_size - 1) // 2
    x, y = jnp.meshgrid(axis, axis, indexing="ij")
    return jnp.stack([x.ravel(), y.ravel()], axis=-1)


def _points_first(offset, mask, geometry):
    """Offsets [K, n, p, q, g, 2] and masks [K, n, p, q, g], ready to be scanned."""
    n, out_h, out_w, _ = mask.shape
    shape = (n, out_h, out_w, geometry.groups, geometry.kernel_size**2)
    return jnp.moveaxis(offset.reshape(*shape, 2), 4, 0), jnp.moveaxis(mask.reshape(shape), 4, 0)


def _take(rows, index):
    return rows.at[index].get(mode="promise_in_bounds")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dcnv3(value, offset, mask, geometry):
    return _forward(value, offset, mask, geometry)[0]


def _forward(value, offset, mask, geometry):
    n, out_h, out_w, _ = mask.shape
    channels = value.shape[-1] // geometry.groups
    rows = value.reshape(-1, channels)

    def add_point(total, point):
        offset_xy, weight, grid_xy = point
        for corner in _corners(offset_xy, grid_xy, value.shape, geometry):
            corner_weight = jnp.where(corner.inside, corner.weight_y * corner.weight_x, 0.0)
            corner_weight *= weight.astype(jnp.float32)
            total += corner_weight[..., None] * _take(rows, corner.row).astype(jnp.float32)
        return total, None

    zero = jnp.zeros((n, out_h, out_w, geometry.groups, channels), jnp.float32)
    points = (*_points_first(offset, mask, geometry), _grid(geometry))
    total, _ = lax.scan(add_point, zero, points)
    return total.reshape(n, out_h, out_w, -1).astype(value.dtype), (value, offset, mask)


def _backward(geometry, residuals, cotangent):
    value, offset, mask = residuals
    n, out_h, out_w, _ = mask.shape
    channels = value.shape[-1] // geometry.groups
    rows = value.reshape(-1, channels)
    cotangent = cotangent.reshape(n, out_h, out_w, geometry.groups, channels).astype(jnp.float32)

    def channel_sum(corner):
        # The barrier keeps XLA:CPU from fusing gather, product and sum into one scalar loop; the
        # sum over channels is then a matrix product. Six times faster there, no cost elsewhere.
        product = _take(rows, corner.row).astype(jnp.float32) * cotangent
        product = lax.optimization_barrier(product).reshape(-1, channels)
        total = jnp.dot(product, jnp.ones((channels, 1)), precision=lax.Precision.HIGHEST)
        return jnp.where(corner.inside, total.reshape(corner.row.shape), 0.0)

    def add_point(value_gradient, point):
        offset_xy, weight, grid_xy = point
        weight = weight.astype(jnp.float32)
        mask_gradient = x_gradient = y_gradient = jnp.zeros(weight.shape, jnp.float32)
        for corner in _corners(offset_xy, grid_xy, value.shape, geometry):
            bilinear = jnp.where(corner.inside, corner.weight_y * corner.weight_x, 0.0)
            update = (bilinear * weight)[..., None] * cotangent
            value_gradient = value_gradient.at[corner.row.ravel()].add(
                update.reshape(-1, channels), mode="promise_in_bounds"
            )
            inner = channel_sum(corner)
            mask_gradient += bilinear * inner
            x_gradient += corner.slope_x * corner.weight_y * inner
            y_gradient += corner.slope_y * corner.weight_x * inner
        scale = weight * geometry.offset_scale
        offset_gradient = jnp.stack([x_gradient * scale, y_gradient * scale], axis=-1)
        return value_gradient, (offset_gradient, mask_gradient)

    zero = jnp.zeros(rows.shape, jnp.float32)
    points = (*_points_first(offset, mask, geometry), _grid(geometry))
    value_gradient, (offset_gradient, mask_gradient) = lax.scan(add_point, zero, points)
    return (
        value_gradient.reshape(value.shape).astype(value.dtype),
        jnp.moveaxis(offset_gradient, 0, 4).reshape(offset.shape).astype(offset.dtype),
        jnp.moveaxis(mask_gradient, 0, 4).reshape(mask.shape).astype(mask.dtype),
    )


_dcnv3.defvjp(_forward, _backward)


def dcnv3(value, offset, mask, *, kernel_size, stride, padding, dilation, groups, offset_scale):
    """`reference.dcnv3` in time and memory that training can afford; sums in float32."""
    geometry = Geometry(kernel_size, stride, padding, dilation, groups, offset_scale)
    return _dcnv3(value, offset, mask, geometry)
