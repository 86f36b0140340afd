"""Multi-scale deformable attention over the tokens of a pyramid of feature maps.

A `Grid` is the (height, width) of one map, and a `Pyramid` holds the grids of all maps. The tokens
of all maps are concatenated in that order.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import map_over_batch
from jaxseg.models.displacement import sow_range
from jaxseg.models.layers import DType, Linear, kernel_param
from jaxseg.ops.layout import fix_row_major
from jaxseg.ops.softmax import softmax
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


class LinearToRows(nn.Module):
    """A linear layer whose outputs are rows over all tokens.

    On a TPU, the last two axes of an array fill registers. Rows that belong to the same group are
    therefore not adjacent: row r of all groups comes before row r + 1 of all groups.

    Attributes:
      features: the number of outputs, group after group.
      groups: the number of groups.
      parts: in each group, the outputs k, k + `parts` and so on form part k.
    """

    features: int
    groups: int = 1
    parts: int = 1
    kernel_init: Callable = nn.initializers.normal(0.02)
    bias_init: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> list[Float[Array, "b d n"]]:
        kernel = kernel_param(self, self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        pairs = zip(self.split(kernel), self.split(bias), strict=True)
        return [
            fix_row_major(jnp.einsum("bnc,cd->bdn", x, kernel) + bias[:, None])
            for kernel, bias in pairs
        ]

    def split(self, weights: Float[Array, "... d"]) -> Float[Array, "parts ... d_part"]:
        """Returns the columns of each part in the order of its rows."""
        *leading, _ = weights.shape
        weights = weights.reshape(*leading, self.groups, -1, self.parts).swapaxes(-3, -2)
        return jnp.moveaxis(weights, -1, 0).reshape(self.parts, *leading, -1)


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
        channels, count = query.shape[-1], self.num_heads * len(pyramid) * self.num_points
        xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        layers = {
            "value_proj": {
                "features": int(channels * self.ratio),
                "kernel_init": xavier,
                "dtype": self.dtype,
            },
            "sampling_offsets": {
                "features": 2 * count,
                "kernel_init": zeros,
                "bias_init": offset_directions(self.num_heads, len(pyramid), self.num_points),
            },
            "attention_weights": {"features": count, "kernel_init": zeros},
        }
        # Initialization needs only shapes, so it must not compile a kernel.
        kernels = KernelChoice("xla") if self.is_initializing() else self.kernels
        tokens_last = pallas_kernels.ms_deform_attn_takes_tokens_last(kernels.implementation)
        project = self.project_to_rows if tokens_last else self.project
        # Coordinates and softmax are in float32: on a grid of 64, bfloat16 has no half pixels.
        arrays = project(layers, features, query.astype(jnp.float32), points, pyramid)

        def sample(value, locations, weights):
            return pallas_kernels.ms_deform_attn(
                value,
                pyramid,
                locations,
                weights,
                implementation=kernels.implementation,
                deterministic=kernels.deterministic,
            )

        mixed = map_over_batch(sample)(*arrays)
        if tokens_last:  # also the gradient, which would be copied
            mixed = fix_row_major(mixed.swapaxes(1, 2)).swapaxes(1, 2)
        return Linear(channels, kernel_init=xavier, dtype=self.dtype, name="output_proj")(mixed)

    def project(self, layers, features, query, points, pyramid):
        """Returns the values of all tokens, and the sampling locations and weights of all queries.

        Args:
          layers: the options of the linear layers, by name.
          features: the tokens [b, s, c] that are sampled.
          query: the queries [b, q, c].
          points: the reference points of the queries [1, q, 1, 2].
          pyramid: the grids of the tokens.
        """

        def layer(name, x, *shape):
            return Linear(**layers[name], name=name)(x).reshape(*x.shape[:2], *shape)

        levels = len(pyramid)
        sizes = np.array([(width, height) for height, width in pyramid], np.float32)
        value = layer("value_proj", features, self.num_heads, -1)
        offsets = layer("sampling_offsets", query, self.num_heads, levels, self.num_points, 2)
        sow_range(self, offsets[..., 1], axes=(1, 4))  # along y, per head and level
        locations = points[:, :, None, :, None] + offsets / sizes[:, None]
        weights = softmax(layer("attention_weights", query, self.num_heads, -1), -1)
        return value, locations, weights.reshape(offsets.shape[:-1])

    def project_to_rows(self, layers, features, query, points, pyramid):
        """Returns the same arrays as `project`, computed with the tokens in the lanes of a TPU.

        Each number of all tokens is a row: the tokens come last, as the kernel reads them. The
        heads come before them, in the sublanes, which the points alone would not fill. The
        transposes at the end are one with those of the kernel.
        """

        def layer(name, x, **options):
            return LinearToRows(**layers[name], **options, name=name)(x)

        b, tokens = query.shape[:2]
        by_point = (b, len(pyramid), self.num_points, self.num_heads, tokens)
        sizes = np.array([(width, height) for height, width in pyramid], np.float32)
        (value,) = layer("value_proj", features)
        value = value.reshape(b, self.num_heads, -1, features.shape[1])
        offsets = layer("sampling_offsets", query, groups=self.num_heads, parts=2)
        offsets = [offset.reshape(by_point) for offset in offsets]
        sow_range(self, offsets[1], axes=(2, 4))  # along y, per level and head
        locations = [
            points[0, :, 0, i] + offset / sizes[:, i, None, None, None]
            for i, offset in enumerate(offsets)
        ]
        (weights,) = layer("attention_weights", query, groups=self.num_heads)
        weights = softmax(weights.reshape(b, -1, self.num_heads, tokens), 1).reshape(by_point)
        x, y, weights = (jnp.einsum("blphn->bnhlp", part) for part in (*locations, weights))
        return jnp.moveaxis(value, -1, 1), jnp.stack([x, y], axis=-1), weights


def to_maps(tokens: Float[Array, "b s c"], pyramid: Pyramid) -> list[Float[Array, "b _ _ c"]]:
    """Splits the tokens of a pyramid into one map per grid."""
    ends = np.cumsum([height * width for height, width in pyramid])[:-1]
    parts = jnp.split(tokens, ends, axis=1)
    return [x.reshape(x.shape[0], *hw, x.shape[2]) for x, hw in zip(parts, pyramid, strict=True)]


def to_tokens(maps: Sequence[Float[Array, "b _ _ c"]]) -> Float[Array, "b s c"]:
    """Concatenates the tokens of all maps, which is the inverse of `to_maps`."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[3]) for x in maps], axis=1)
