"""BEiT (arXiv:2106.08254) and BEiTv2 (arXiv:2208.06366): ViTs with relative position bias."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models import vit
from jaxseg.models.layers import DType, Linear
from jaxseg.position_tables import OF_CLASS_TOKEN, spline_matrix
from jaxseg.resize import along_height, along_width


def relative_position_index(hw: Sequence[int]) -> np.ndarray:
    """Row of the bias table for every pair of tokens, the class token first; int [1 + n, 1 + n].

    Pairs of patches are numbered by their displacement; the last three rows of the table are for
    class token to patch, patch to class token, and class token to itself.
    """
    height, width = hw
    y, x = np.divmod(np.arange(height * width), width)
    dy = y[:, None] - y[None] + height - 1
    dx = x[:, None] - x[None] + width - 1
    rows = (2 * height - 1) * (2 * width - 1) + 3
    index = np.full((1 + height * width,) * 2, rows - 3)
    index[1:, 1:] = dy * (2 * width - 1) + dx
    index[1:, 0] = rows - 2
    index[0, 0] = rows - 1
    return index


def resize_relative_positions(
    table: Float[Array, "rows g"], window: Sequence[int], hw: Sequence[int]
) -> Float[Array, "out_rows g"]:
    """The table of one grid for another, as `position_tables.resize_relative` has it, traced."""
    patches, of_class = table[:-OF_CLASS_TOKEN], table[-OF_CLASS_TOKEN:]
    grid = patches.reshape(1, 2 * window[0] - 1, 2 * window[1] - 1, -1)
    grid = along_height(spline_matrix(window[0], hw[0]), grid)
    grid = along_width(spline_matrix(window[1], hw[1]), grid)
    return jnp.concatenate([grid.reshape(-1, table.shape[1]), of_class])


class Attention(nn.Module):
    """Self-attention with a learnt bias for every displacement and head; keys have no bias.

    `window` is the grid (h, w) that the table is made for. For another grid it is interpolated when
    the model is traced, as the reference does it when it loads one. None is for no such bias.
    """

    num_heads: int
    window: tuple[int, int] | None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], hw: Sequence[int]) -> Float[Array, "b n c"]:
        channels = x.shape[-1]
        zeros = nn.initializers.zeros
        query_bias = self.param("q_bias", zeros, (channels,))
        value_bias = self.param("v_bias", zeros, (channels,))
        bias = jnp.concatenate([query_bias, jnp.zeros_like(query_bias), value_bias])
        qkv = Linear(3 * channels, use_bias=False, dtype=self.dtype, name="qkv")(x)
        x = vit.attend(qkv + bias.astype(self.dtype), self.num_heads, self.position_bias(hw))
        return Linear(channels, dtype=self.dtype, name="proj")(x)

    def position_bias(self, hw: Sequence[int]) -> Float[Array, "1 g n n"] | None:
        """The bias of every pair of tokens of a grid, the class token first."""
        if self.window is None:
            return None
        rows = (2 * self.window[0] - 1) * (2 * self.window[1] - 1) + 3
        shape = (rows, self.num_heads)
        table = self.param("relative_position_bias_table", nn.initializers.zeros, shape)
        if tuple(hw) != tuple(self.window):
            table = resize_relative_positions(table, self.window, hw)
        return table[relative_position_index(hw)].transpose(2, 0, 1)[None].astype(self.dtype)


class Block(vit.Block):
    """A block of BEiT: the class token comes first, and `hw` is the grid of the others.

    `window` is the grid of the table of relative positions, or None (see `Attention`).
    """

    window: tuple[int, int] | None = None
    layer_scale: float | None = 1e-6

    gamma = "gamma_{}"

    def attention(self) -> nn.Module:
        return Attention(self.num_heads, self.window, dtype=self.dtype, name="attn")
