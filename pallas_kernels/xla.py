"""The portable implementation: XLA operations only, with hand-written gradients.

The forward pass is a scan over the sampling points (`xla_samples`). XLA's automatic gradient of
this scan is many times slower than the hand-written one, which gathers the same rows once more.

Outputs are flat: DCNv3 has M = n·p·q·g rows of output, one for every (image, y, x, group), and
multi-scale deformable attention has M = b·q·heads, one for every (image, query, head).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.xla_samples import (
    BORDER,
    Points,
    add_borders,
    add_samples,
    find_rows,
    remove_borders,
    transpose_samples,
)


class Geometry(NamedTuple):
    """Holds the static parameters of a DCNv3 call."""

    kernel_size: int
    stride: int
    padding: int
    dilation: int
    groups: int
    offset_scale: float


def _kernel_points(offset, mask, geometry):
    """Returns x and y offsets [K, M], masks [K, M] and grid positions [K, 2], ready for a scan."""
    points = geometry.kernel_size**2
    axis = jnp.arange(geometry.kernel_size, dtype=jnp.float32) * geometry.dilation
    axis -= geometry.dilation * (geometry.kernel_size - 1) // 2
    x, y = jnp.meshgrid(axis, axis, indexing="ij")  # x is the slow index
    offset = offset.reshape(-1, points, 2)
    return (
        offset[..., 0].T,
        offset[..., 1].T,
        mask.reshape(-1, points).T,
        jnp.stack([x.ravel(), y.ravel()], axis=-1),
    )


def _place_kernel_point(
    point: tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, " m"], Float[Array, " 2"]],
    mask_shape: tuple[int, ...],
    value_shape: tuple[int, ...],
    geometry: Geometry,
) -> Points:
    """Places one point of the kernel grid, from its x and y offsets, masks and grid position."""
    *offsets, mask, grid = point
    _, height, width, _ = value_shape
    n, out_h, out_w, _ = mask_shape
    shape = (n, out_h, out_w, geometry.groups)
    image, out_y, out_x, group = (
        lax.broadcasted_iota(jnp.int32, shape, axis).ravel() for axis in range(4)
    )
    first = geometry.dilation * (geometry.kernel_size - 1) // 2 - geometry.padding
    # Points far outside sample zeros anyway. The bound only keeps the conversion to int32 defined.
    bound = float(4 * (height + width + geometry.stride * (out_h + out_w) + geometry.padding))

    def place(offset, grid, out):
        # Coordinates stay relative to the output pixel. In float32, floor and fraction of a small
        # number are more exact than those of a large absolute position.
        relative = (offset.astype(jnp.float32) + grid) * geometry.offset_scale
        whole = jnp.floor(relative)
        pixel = jnp.clip(whole, -bound, bound).astype(jnp.int32) + geometry.stride * out + first
        return pixel, relative - whole

    x, fraction_x = place(offsets[0], grid[0], out_x)
    y, fraction_y = place(offsets[1], grid[1], out_y)
    row = find_rows(image * geometry.groups + group, y, x, height, width)
    return Points(row, fraction_x, fraction_y, mask.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dcnv3(value, offset, mask, geometry):
    return _dcnv3_forward(value, offset, mask, geometry)[0]


def _dcnv3_forward(value, offset, mask, geometry):
    maps = _by_group(value, geometry)
    rows, width = add_borders(maps), maps.shape[2]

    def add_point(total, point):
        points = _place_kernel_point(point, mask.shape, value.shape, geometry)
        return add_samples(total, rows, width, points), None

    zero = jnp.zeros((mask.size // geometry.kernel_size**2, rows.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_point, zero, _kernel_points(offset, mask, geometry))
    output = total.reshape(*mask.shape[:3], value.shape[-1]).astype(value.dtype)
    return output, (value, offset, mask)


def _dcnv3_backward(geometry, residuals, cotangent):
    value, offset, mask = residuals
    maps = _by_group(value, geometry)
    rows, width = add_borders(maps), maps.shape[2]
    cotangent = cotangent.reshape(-1, rows.shape[-1]).astype(jnp.float32)

    def add_point(rows_gradient, point):
        points = _place_kernel_point(point, mask.shape, value.shape, geometry)
        return transpose_samples(rows_gradient, rows, width, points, cotangent)

    zero = jnp.zeros(rows.shape, jnp.float32)
    rows_gradient, (x_gradient, y_gradient, mask_gradient) = lax.scan(
        add_point, zero, _kernel_points(offset, mask, geometry)
    )
    offset_gradient = jnp.stack([x_gradient.T, y_gradient.T], axis=-1) * geometry.offset_scale
    return (
        remove_borders(rows_gradient, maps.shape).reshape(value.shape).astype(value.dtype),
        offset_gradient.reshape(offset.shape).astype(offset.dtype),
        mask_gradient.T.reshape(mask.shape).astype(mask.dtype),
    )


def _by_group(value, geometry):
    return value.reshape(*value.shape[:3], geometry.groups, value.shape[-1] // geometry.groups)


_dcnv3.defvjp(_dcnv3_forward, _dcnv3_backward)


def dcnv3(value, offset, mask, *, kernel_size, stride, padding, dilation, groups, offset_scale):
    """Computes `reference.dcnv3` in time and memory that training can afford.

    Sums are in float32.
    """
    geometry = Geometry(kernel_size, stride, padding, dilation, groups, offset_scale)
    return _dcnv3(value, offset, mask, geometry)


class _Level(NamedTuple):
    """Holds one level of the value, and the points in it.

    Attributes:
      maps: the level, [b, h, w, heads, c].
      points: locations [points, 2, M] and weights [points, M].
    """

    maps: Float[Array, "b h w heads c"]
    points: tuple[Float[Array, "points 2 m"], Float[Array, "points m"]]


def _levels(value, spatial_shapes, sampling_locations, attention_weights):
    """Yields the levels, the largest first."""
    *_, levels, points = attention_weights.shape
    locations = sampling_locations.reshape(-1, levels, points, 2).transpose(1, 2, 3, 0)
    weights = attention_weights.reshape(-1, levels, points).transpose(1, 2, 0)
    batch, _, *rest = value.shape
    first = 0
    for level, (height, width) in enumerate(spatial_shapes):
        maps = value[:, first : first + height * width].reshape(batch, height, width, *rest)
        yield _Level(maps, (locations[level], weights[level]))
        first += height * width


def _place_location(point, maps, queries) -> Points:
    """Places one sampling point of every query and head, from locations [2, M] and weights [M]."""
    (x, y), weight = point
    batch, height, width, heads, _ = maps.shape
    shape = (batch, queries, heads)
    image, _, head = (lax.broadcasted_iota(jnp.int32, shape, axis).ravel() for axis in range(3))

    def place(location, size):
        # Half-pixel centers. At the bounds, all four pixels lie in the border, so the bounds change
        # neither values nor gradients. They keep the conversion to int32 defined.
        pixel = jnp.clip(location.astype(jnp.float32) * size - 0.5, -BORDER, size)
        whole = jnp.floor(pixel)
        return whole.astype(jnp.int32), pixel - whole

    (x, fraction_x), (y, fraction_y) = place(x, width), place(y, height)
    row = find_rows(image * heads + head, y, x, height, width)
    return Points(row, fraction_x, fraction_y, weight.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights):
    """Computes `reference.ms_deform_attn` in time and memory that training can afford.

    Sums are in float32.
    """
    return _msda_forward(value, spatial_shapes, sampling_locations, attention_weights)[0]


def _msda_forward(value, spatial_shapes, sampling_locations, attention_weights):
    batch, queries, heads, _, _ = attention_weights.shape
    channels = value.shape[-1]
    total = jnp.zeros((batch * queries * heads, channels), jnp.float32)
    for maps, points in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        rows = add_borders(maps)

        def add_point(total, point, rows=rows, maps=maps):
            placed = _place_location(point, maps, queries)
            return add_samples(total, rows, maps.shape[2], placed), None

        total, _ = lax.scan(add_point, total, points)
    output = total.reshape(batch, queries, heads * channels).astype(value.dtype)
    return output, (value, sampling_locations, attention_weights)


def _msda_backward(spatial_shapes, residuals, cotangent):
    value, sampling_locations, attention_weights = residuals
    batch, _, *rest = value.shape
    queries = attention_weights.shape[1]
    cotangent = cotangent.reshape(-1, value.shape[-1]).astype(jnp.float32)
    value_gradients, location_gradients, weight_gradients = [], [], []
    for maps, points in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        _, height, width, _, _ = maps.shape
        rows = add_borders(maps)

        def add_point(total, point, rows=rows, maps=maps):
            placed = _place_location(point, maps, queries)
            return transpose_samples(total, rows, maps.shape[2], placed, cotangent)

        rows_gradient, (x, y, weight) = lax.scan(
            add_point, jnp.zeros(rows.shape, jnp.float32), points
        )
        maps_gradient = remove_borders(rows_gradient, maps.shape)
        value_gradients.append(maps_gradient.reshape(batch, height * width, *rest))
        location_gradients.append(jnp.stack([x.T * width, y.T * height], axis=-1))
        weight_gradients.append(weight.T)  # [m, points]
    value_gradient = jnp.concatenate(value_gradients, axis=1)
    location_gradient = jnp.stack(location_gradients, axis=1)  # [m, levels, points, 2]
    weight_gradient = jnp.stack(weight_gradients, axis=1)
    return (
        value_gradient.astype(value.dtype),
        location_gradient.reshape(sampling_locations.shape).astype(sampling_locations.dtype),
        weight_gradient.reshape(attention_weights.shape).astype(attention_weights.dtype),
    )


ms_deform_attn.defvjp(_msda_forward, _msda_backward)


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Computes `reference.conv3x3` with XLA's convolution."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
