"""Plain vision transformers (arXiv:2010.11929) as DeiT, AugReg and Uni-Perceiver use them."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.layers import MLP, DType, Linear, drop_path, kernel_param, layer_norm
from jaxseg.ops.attention import self_attend
from jaxseg.ops.linear import matmul
from jaxseg.ops.resize import resize_bicubic

PATCH = 16  # pixels along a side
STRIDE = 32  # of the coarsest features that heads are given


class PatchConv(nn.Module):
    """Every patch of 16 × 16 pixels to one token, by a linear map."""

    embed_dim: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        b, height, width, _ = images.shape
        h, w = height // PATCH, width // PATCH
        shape = (PATCH, PATCH, 3, self.embed_dim)
        kernel = kernel_param(self, nn.initializers.normal(0.02), shape).reshape(-1, self.embed_dim)
        bias = self.param("bias", nn.initializers.zeros, (self.embed_dim,))
        patches = images.reshape(b, h, PATCH, w, PATCH, 3).swapaxes(2, 3).reshape(b, h, w, -1)
        return matmul(patches.astype(self.dtype), kernel) + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    """The tokens of an image, as a map."""

    embed_dim: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        return PatchConv(self.embed_dim, dtype=self.dtype, name="proj")(images)


def split_windows(
    x: Float[Array, "b n d"], hw: Sequence[int], size: int
) -> Float[Array, "b h w s s d"]:
    """Tokens of a grid by square windows; the grid is filled up with zeros at its end."""
    b, _, width = x.shape
    h, w = -(hw[0] // -size), -(hw[1] // -size)
    margin = ((0, 0), (0, h * size - hw[0]), (0, w * size - hw[1]), (0, 0))
    grid = jnp.pad(x.reshape(b, *hw, width), margin)
    return grid.reshape(b, h, size, w, size, width).swapaxes(2, 3)


def merge_windows(x: Float[Array, "b h w s s d"], hw: Sequence[int]) -> Float[Array, "b n d"]:
    """`windows_of` undone."""
    b, h, w, size, _, width = x.shape
    grid = x.swapaxes(2, 3).reshape(b, h * size, w * size, width)
    return grid[:, : hw[0], : hw[1]].reshape(b, hw[0] * hw[1], width)


class ViTAttention(nn.Module):
    """Multi-head self-attention, of all tokens or within square windows of `window` tokens a side.

    As in the reference, tokens that fill up a window at the edge take part in its softmax with
    queries, keys and values of zero.
    """

    num_heads: int
    window: int | None = None
    dtype: DType = jnp.float32

    projections = ("qkv", "proj")  # the names of the linear layers before and after

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], hw: Sequence[int]) -> Float[Array, "b n c"]:
        channels = x.shape[-1]
        before, after = self.projections
        x = Linear(3 * channels, dtype=self.dtype, name=before)(x)
        if self.window:
            parts = split_windows(x, hw, self.window)
            flat = self_attend(parts.reshape(-1, self.window**2, 3 * channels), self.num_heads)
            x = merge_windows(flat.reshape(*parts.shape[:-1], channels), hw)
        else:
            x = self_attend(x, self.num_heads)
        return Linear(channels, dtype=self.dtype, name=after)(x)


class ViTBlock(nn.Module):
    """Attention and MLP, each in a residual branch after a norm, with layer scale (or None)."""

    num_heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    layer_scale: float | None = 1.0
    window: int | None = None
    dtype: DType = jnp.float32

    gamma = "gamma{}"  # the name of the layer scale of branch 1 or 2
    epsilon = 1e-6  # of the layer norms

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], hw: Sequence[int], train: bool
    ) -> Float[Array, "b n c"]:
        for index, operation in ((1, lambda x: self.attention(x, hw)), (2, self.feed_forward)):
            branch = operation(layer_norm(f"norm{index}", self.dtype, self.epsilon)(x))
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                gamma = self.param(self.gamma.format(index), init, x.shape[-1:])
                branch *= gamma.astype(self.dtype)
            x += drop_path(self.drop_path, train)(branch)
        return x

    def attention(self, x, hw):
        """What mixes the tokens of a grid."""
        return ViTAttention(self.num_heads, self.window, dtype=self.dtype, name="attn")(x, hw)

    def feed_forward(self, x):
        """What every token goes through by itself."""
        hidden_dim = int(x.shape[-1] * self.mlp_ratio)
        return MLP(hidden_dim, dtype=self.dtype, name="mlp")(x)


def drop_path_rate(index: int, depth: int, rate: float) -> float:
    """The rate of a block: from 0 for the first it grows linearly to `rate` for the last."""
    return rate * index / max(depth - 1, 1)


def patch_grid(images: Float[Array, "b H W 3"], model: str) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
      ValueError: naming `model`, for an image whose sides are no multiples of 32.
    """
    height, width = images.shape[1:3]
    if height % STRIDE or width % STRIDE:
        raise ValueError(
            f"{model}: an image of {height} x {width}; both sides have to be multiples of {STRIDE}"
        )
    return height // PATCH, width // PATCH


def absolute_positions(table: Float[Array, "1 m c"], hw: Sequence[int]) -> Float[Array, "1 h w c"]:
    """A table of positions resized to a grid, bicubically; its first row, of the class token, is
    not used."""
    side = round((table.shape[1] - 1) ** 0.5)
    return resize_bicubic(table[:, 1:].reshape(1, side, side, -1), hw)
