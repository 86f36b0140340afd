"""The portable implementation: XLA operations only, with hand-written gradients.

The forward pass is a scan over the sampling points (`bilinear_rows`). XLA's automatic gradient of
this scan is many times slower than the hand-written one, which gathers the same rows once more.

All arrays are flat. In DCNv3, the value has one row for every (image, y, x, group), and there are M
= n·p·q·g rows of output. In multi-scale deformable attention, the value has one row for every
(image, pixel of any level, head), and there are M = b·q·heads rows of output.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.bilinear_rows import Plane, Points, add_samples, transpose_samples


class Geometry(NamedTuple):
    """Holds the static parameters of a DCNv3 call."""

    kernel_size: int
    stride: int
    padding: int
    dilation: int
    groups: int
    offset_scale: float


def _kernel_points(offset, mask, geometry):
    """Returns offsets [K, M, 2], masks [K, M] and grid positions [K, 2], ready for a scan."""
    points = geometry.kernel_size**2
    axis = jnp.arange(geometry.kernel_size, dtype=jnp.float32) * geometry.dilation
    axis -= geometry.dilation * (geometry.kernel_size - 1) // 2
    x, y = jnp.meshgrid(axis, axis, indexing="ij")  # x is the slow index
    return (
        offset.reshape(-1, points, 2).swapaxes(0, 1),
        mask.reshape(-1, points).T,
        jnp.stack([x.ravel(), y.ravel()], axis=-1),
    )


def _place_kernel_point(
    point: tuple[Float[Array, "m 2"], Float[Array, " m"], Float[Array, " 2"]],
    mask_shape: tuple[int, ...],
    value_shape: tuple[int, ...],
    geometry: Geometry,
) -> tuple[Plane, Points]:
    """Places one point of the kernel grid, from its offsets (x, y), masks and grid position."""
    offset, mask, grid = point
    _, height, width, _ = value_shape
    n, out_h, out_w, _ = mask_shape
    # Coordinates stay relative to the output pixel. In float32, floor and fraction of a small
    # number are more exact than those of a large absolute position.
    relative = (offset.astype(jnp.float32) + grid) * geometry.offset_scale
    whole = jnp.floor(relative)
    fraction = relative - whole
    # Points far outside sample zeros anyway. The bound only keeps the conversion to int32 defined.
    bound = float(4 * (height + width + geometry.stride * (out_h + out_w) + geometry.padding))
    whole = jnp.clip(whole, -bound, bound).astype(jnp.int32)

    shape = (n, out_h, out_w, geometry.groups)
    image, y, x, group = (lax.broadcasted_iota(jnp.int32, shape, axis).ravel() for axis in range(4))
    first = geometry.dilation * (geometry.kernel_size - 1) // 2 - geometry.padding
    x0 = whole[:, 0] + geometry.stride * x + first
    y0 = whole[:, 1] + geometry.stride * y + first
    first_row = image * height * width * geometry.groups + group
    points = Points(x0, y0, fraction[:, 0], fraction[:, 1], mask.astype(jnp.float32))
    return Plane(height, width, first_row, geometry.groups), points


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dcnv3(value, offset, mask, geometry):
    return _dcnv3_forward(value, offset, mask, geometry)[0]


def _dcnv3_forward(value, offset, mask, geometry):
    rows = value.reshape(-1, value.shape[-1] // geometry.groups)

    def add_point(total, point):
        placed = _place_kernel_point(point, mask.shape, value.shape, geometry)
        return add_samples(total, rows, *placed), None

    zero = jnp.zeros((mask.size // geometry.kernel_size**2, rows.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_point, zero, _kernel_points(offset, mask, geometry))
    output = total.reshape(*mask.shape[:3], value.shape[-1]).astype(value.dtype)
    return output, (value, offset, mask)


def _dcnv3_backward(geometry, residuals, cotangent):
    value, offset, mask = residuals
    rows = value.reshape(-1, value.shape[-1] // geometry.groups)
    cotangent = cotangent.reshape(-1, rows.shape[-1]).astype(jnp.float32)

    def add_point(value_gradient, point):
        placed = _place_kernel_point(point, mask.shape, value.shape, geometry)
        return transpose_samples(value_gradient, rows, *placed, cotangent)

    zero = jnp.zeros(rows.shape, jnp.float32)
    value_gradient, (x_gradient, y_gradient, mask_gradient) = lax.scan(
        add_point, zero, _kernel_points(offset, mask, geometry)
    )
    offset_gradient = jnp.stack([x_gradient.T, y_gradient.T], axis=-1) * geometry.offset_scale
    return (
        value_gradient.reshape(value.shape).astype(value.dtype),
        offset_gradient.reshape(offset.shape).astype(offset.dtype),
        mask_gradient.T.reshape(mask.shape).astype(mask.dtype),
    )


_dcnv3.defvjp(_dcnv3_forward, _dcnv3_backward)


def dcnv3(value, offset, mask, *, kernel_size, stride, padding, dilation, groups, offset_scale):
    """Computes `reference.dcnv3` in time and memory that training can afford.

    Sums are in float32.
    """
    geometry = Geometry(kernel_size, stride, padding, dilation, groups, offset_scale)
    return _dcnv3(value, offset, mask, geometry)


def _levels(value, spatial_shapes, sampling_locations, attention_weights):
    """Yields, per level, its plane, and its locations [points, 2, M] and weights [points, M]."""
    *rows, levels, points = attention_weights.shape
    locations = sampling_locations.reshape(-1, levels, points, 2).transpose(1, 2, 3, 0)
    weights = attention_weights.reshape(-1, levels, points).transpose(1, 2, 0)
    image, _, head = (lax.broadcasted_iota(jnp.int32, rows, axis).ravel() for axis in range(3))
    _, pixels, heads, _ = value.shape
    first_row = image * pixels * heads + head
    for level, (height, width) in enumerate(spatial_shapes):
        yield Plane(height, width, first_row, heads), (locations[level], weights[level])
        first_row += height * width * heads


def _place_location(point, plane: Plane) -> Points:
    """Places one sampling point of every query and head, from locations [2, M] and weights [M]."""
    (x, y), weight = point

    def pixel(location, size):
        # Half-pixel centers. The bounds lie strictly outside the level, where all corners count as
        # zero, so they change neither values nor gradients. They keep the conversion to int32
        # defined.
        return jnp.clip(location.astype(jnp.float32) * size - 0.5, -2.0, size + 1.0)

    x, y = pixel(x, plane.width), pixel(y, plane.height)
    x0, y0 = jnp.floor(x), jnp.floor(y)
    return Points(
        x0.astype(jnp.int32), y0.astype(jnp.int32), x - x0, y - y0, weight.astype(jnp.float32)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights):
    """Computes `reference.ms_deform_attn` in time and memory that training can afford.

    Sums are in float32.
    """
    return _msda_forward(value, spatial_shapes, sampling_locations, attention_weights)[0]


def _msda_forward(value, spatial_shapes, sampling_locations, attention_weights):
    batch, queries, heads, _, _ = attention_weights.shape
    rows = value.reshape(-1, value.shape[-1])
    total = jnp.zeros((batch * queries * heads, rows.shape[-1]), jnp.float32)
    for plane, level_points in _levels(
        value, spatial_shapes, sampling_locations, attention_weights
    ):

        def add_point(total, point, plane=plane):
            return add_samples(total, rows, plane, _place_location(point, plane)), None

        total, _ = lax.scan(add_point, total, level_points)
    output = total.reshape(batch, queries, heads * value.shape[-1]).astype(value.dtype)
    return output, (value, sampling_locations, attention_weights)


def _msda_backward(spatial_shapes, residuals, cotangent):
    value, sampling_locations, attention_weights = residuals
    rows = value.reshape(-1, value.shape[-1])
    cotangent = cotangent.reshape(-1, rows.shape[-1]).astype(jnp.float32)
    value_gradient = jnp.zeros(rows.shape, jnp.float32)
    location_gradients, weight_gradients = [], []
    for plane, level_points in _levels(
        value, spatial_shapes, sampling_locations, attention_weights
    ):

        def add_point(total, point, plane=plane):
            points = _place_location(point, plane)
            return transpose_samples(total, rows, plane, points, cotangent)

        value_gradient, (x, y, weight) = lax.scan(add_point, value_gradient, level_points)
        location_gradients.append(jnp.stack([x.T * plane.width, y.T * plane.height], axis=-1))
        weight_gradients.append(weight.T)  # [m, points]
    location_gradient = jnp.stack(location_gradients, axis=1)  # [m, levels, points, 2]
    weight_gradient = jnp.stack(weight_gradients, axis=1)
    return (
        value_gradient.reshape(value.shape).astype(value.dtype),
        location_gradient.reshape(sampling_locations.shape).astype(sampling_locations.dtype),
        weight_gradient.reshape(attention_weights.shape).astype(attention_weights.dtype),
    )


ms_deform_attn.defvjp(_msda_forward, _msda_backward)


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Computes `reference.conv3x3` with XLA's convolution."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
