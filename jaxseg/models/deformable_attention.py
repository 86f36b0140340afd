"""Multi-scale deformable attention over the tokens of a pyramid of feature maps.

A `Grid` is the (height, width) of one map, and a `Pyramid` holds the grids of all maps. The tokens
of all maps are concatenated in that order.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import map_over_batch
from jaxseg.models.displacement import sow_range
from jaxseg.models.layers import DType, Linear
from pallas_kernels import KernelChoice

Grid = tuple[int, int]
Pyramid = tuple[Grid, ...]


def reference_points(pyramid: Pyramid) -> Float[np.ndarray, "1 q 1 2"]:
    """Returns the center (x, y) of every grid cell, as a share of its map in 0..1."""
    points = []
    for height, width in pyramid:
        y, x = np.divmod(np.arange(height * width, dtype=np.float32), np.float32(width))
        points.append(np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=-1))
    return np.concatenate(points)[None, :, None].astype(np.float32)


def offset_directions(heads: int, levels: int, points: int) -> Callable:
    """Returns the initializer of the offset biases, which points each head in its own direction.

    Head h points along the angle 2πh / heads, and its point p (from 0) lies p + 1 steps away. The
    larger coordinate of a step is one pixel.
    """

    def init(key, shape, dtype=jnp.float32):
        angles = 2 * np.pi * np.arange(heads) / heads
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        directions /= np.abs(directions).max(axis=-1, keepdims=True)
        steps = np.arange(1, points + 1)[:, None]
        grid = np.broadcast_to(directions[:, None, None] * steps, (heads, levels, points, 2))
        return jnp.asarray(grid.reshape(shape), dtype)

    return init


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (arXiv:2010.04159): each query samples a few points.

    The offsets of the points and their weights are predicted from the query. The offsets are
    relative to the query's reference point and in pixels of each level. The weights are a softmax
    over all levels and points.

    Attributes:
      num_heads: the number of heads.
      num_points: the number of points per head and level.
      ratio: the width of the values as a share of the query's channels.
    """

    num_heads: int
    num_points: int = 4
    ratio: float = 1.0
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b q c"],
        points: Float[Array | np.ndarray, "1 q 1 2"],
        features: Float[Array, "b s c"],
        pyramid: Pyramid,
    ) -> Float[Array, "b q c"]:
        b, queries, channels = query.shape
        heads, levels = self.num_heads, len(pyramid)
        xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        width = int(channels * self.ratio)
        value = Linear(width, kernel_init=xavier, dtype=self.dtype, name="value_proj")(features)
        value = value.reshape(b, -1, heads, width // heads)

        # Coordinates and softmax are in float32: on a grid of 64, bfloat16 has no half pixels.
        query = query.astype(jnp.float32)
        count = heads * levels * self.num_points
        offsets = Linear(
            2 * count,
            kernel_init=zeros,
            bias_init=offset_directions(heads, levels, self.num_points),
            name="sampling_offsets",
        )(query).reshape(b, queries, heads, levels, self.num_points, 2)
        sow_range(self, offsets[..., 1], axes=(1, 4))  # along y, per head and level
        weights = Linear(count, kernel_init=zeros, name="attention_weights")(query)
        weights = nn.softmax(weights.reshape(b, queries, heads, -1))
        weights = weights.reshape(b, queries, heads, levels, self.num_points)
        sizes = np.array([(w, h) for h, w in pyramid], np.float32)[:, None]
        locations = points[:, :, None, :, None] + offsets / sizes

        # Initialization needs only shapes, so it must not compile a kernel.
        kernels = KernelChoice("xla") if self.is_initializing() else self.kernels
        sample = functools.partial(
            pallas_kernels.ms_deform_attn,
            spatial_shapes=pyramid,
            implementation=kernels.implementation,
            deterministic=kernels.deterministic,
        )
        mixed = map_over_batch(
            lambda value, locations, weights: sample(
                value, sampling_locations=locations, attention_weights=weights
            )
        )(value, locations, weights)
        return Linear(channels, kernel_init=xavier, dtype=self.dtype, name="output_proj")(mixed)


def to_maps(tokens: Float[Array, "b s c"], pyramid: Pyramid) -> list[Float[Array, "b _ _ c"]]:
    """Splits the tokens of a pyramid into one map per grid."""
    ends = np.cumsum([height * width for height, width in pyramid])[:-1]
    parts = jnp.split(tokens, ends, axis=1)
    return [x.reshape(x.shape[0], *hw, x.shape[2]) for x, hw in zip(parts, pyramid, strict=True)]


def to_tokens(maps: Sequence[Float[Array, "b _ _ c"]]) -> Float[Array, "b s c"]:
    """Concatenates the tokens of all maps, which is the inverse of `to_maps`."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[3]) for x in maps], axis=1)
