"""The operators on NVIDIA GPUs: where their sampling points lie.

`samples` has the kernels. The operators take three options:

- `deterministic`: the value's gradient has the same bits in every run, for more time and memory.
- `interpret`: the kernels run without a GPU, slowly, as in tests. It is an argument and is not
  detected, so that programs can be lowered for a GPU on machines without one.
- `block_size`: returns the block size of every kernel, as `block_sizes.block_size` does.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from pallas_kernels.gpu import block_sizes
from pallas_kernels.gpu.corners import Plane, Points
from pallas_kernels.gpu.samples import Run, sum_of_samples
from pallas_kernels.xla import Geometry


def _divide(index, size):
    return lax.div(index, size), lax.rem(index, size)


class KernelPoints(NamedTuple):
    """Places the sampling points of DCNv3: offsets in pixels from a grid around each output pixel.

    Attributes:
      value_shape: the shape of the value, [n, h, w, channels].
      out_hw: (height, width) of the output.
      geometry: the static parameters of the call.
      name: the name of the operator.
    """

    value_shape: tuple[int, int, int, int]
    out_hw: tuple[int, int]
    geometry: Geometry
    name: str = "dcnv3"

    @property
    def points(self) -> int:
        return self.geometry.kernel_size**2

    def place(self, row, point, x, y, weight):
        _, height, width, _ = self.value_shape
        out_h, out_w = self.out_hw
        groups, scale = self.geometry.groups, self.geometry.offset_scale
        rest, group = _divide(row, groups)
        rest, out_x = _divide(rest, out_w)
        image, out_y = _divide(rest, out_h)
        grid_x, grid_y = _divide(point, self.geometry.kernel_size)  # x is the slow index

        plane = Plane(height, width, image * (height * width * groups) + group, groups)
        x, fraction_x = self._pixel(x, grid_x, out_x)
        y, fraction_y = self._pixel(y, grid_y, out_y)
        return plane, Points(x, y, fraction_x, fraction_y, weight), (scale, scale)

    def _pixel(self, offset, grid, out):
        kernel_size, stride, padding, dilation, _, scale = self.geometry
        half = dilation * (kernel_size - 1) // 2
        # Coordinates stay relative to the output pixel. In float32, floor and fraction of a small
        # number are more exact than those of a large absolute position.
        relative = (offset + (grid * dilation - half).astype(jnp.float32)) * scale
        whole = jnp.floor(relative)
        # Points far outside sample zeros anyway. The bound only keeps the conversion to int32
        # defined.
        pixel = jnp.clip(whole, -(2.0**24), 2.0**24).astype(jnp.int32)
        return pixel + stride * out + (half - padding), relative - whole


def dcnv3(
    value,
    offset,
    mask,
    *,
    kernel_size,
    stride,
    padding,
    dilation,
    groups,
    offset_scale,
    deterministic=False,
    interpret=False,
    block_size=block_sizes.block_size,
):
    """Computes `reference.dcnv3` with kernels for NVIDIA GPUs; sums are in float32."""
    geometry = Geometry(kernel_size, stride, padding, dilation, groups, offset_scale)
    output = sum_of_samples(
        value.reshape(-1, value.shape[-1] // groups),
        offset.reshape(-1, kernel_size**2, 2),
        mask.reshape(-1, kernel_size**2),
        KernelPoints(value.shape, mask.shape[1:3], geometry),
        Run(deterministic, interpret, block_size),
    )
    return output.reshape(*mask.shape[:3], value.shape[-1])


class LevelPoints(NamedTuple):
    """Places the points of multi-scale deformable attention: locations from 0 to 1 of each level.

    Attributes:
      spatial_shapes: (height, width) per level.
      queries: the number of queries of an image.
      heads: the number of heads.
      points: the number of points of a query and head, over all levels.
      name: the name of the operator.
    """

    spatial_shapes: tuple[tuple[int, int], ...]
    queries: int
    heads: int
    points: int
    name: str = "ms_deform_attn"

    def place(self, row, point, x, y, weight):
        pixels = [height * width for height, width in self.spatial_shapes]
        before = [sum(pixels[:level]) for level in range(len(pixels))]
        level = lax.div(point, self.points // len(pixels))
        height, width = (_choose(level, sizes) for sizes in zip(*self.spatial_shapes, strict=True))
        rest, head = _divide(row, self.heads)
        image = lax.div(rest, self.queries)

        first = (image * sum(pixels) + _choose(level, before)) * self.heads + head
        plane = Plane(height, width, first, self.heads)
        x, fraction_x = _level_pixel(x, width)
        y, fraction_y = _level_pixel(y, height)
        steps = (width.astype(jnp.float32), height.astype(jnp.float32))
        return plane, Points(x, y, fraction_x, fraction_y, weight), steps


def _choose(index, numbers):
    """Returns numbers[index] without a table, which kernels cannot hold."""
    return sum((index == i).astype(jnp.int32) * number for i, number in enumerate(numbers))


def _level_pixel(location, size):
    size = size.astype(jnp.float32)
    # Half-pixel centers. The bounds lie strictly outside the level, where no corner counts, so
    # they change neither values nor gradients. They keep the conversion to int32 defined.
    pixel = jnp.clip(location * size - 0.5, -2.0, size + 1.0)
    whole = jnp.floor(pixel)
    return whole.astype(jnp.int32), pixel - whole


def ms_deform_attn(
    value,
    spatial_shapes,
    sampling_locations,
    attention_weights,
    *,
    deterministic=False,
    interpret=False,
    block_size=block_sizes.block_size,
):
    """Computes `reference.ms_deform_attn` with kernels for NVIDIA GPUs; sums are in float32."""
    batch, queries, heads, levels, points = attention_weights.shape
    output = sum_of_samples(
        value.reshape(-1, value.shape[-1]),
        sampling_locations.reshape(-1, levels * points, 2),
        attention_weights.reshape(-1, levels * points),
        LevelPoints(spatial_shapes, queries, heads, levels * points),
        Run(deterministic, interpret, block_size),
    )
    return output.reshape(batch, queries, heads * value.shape[-1])
