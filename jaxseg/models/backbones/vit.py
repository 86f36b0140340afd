"""Plain vision transformers (arXiv:2010.11929), as DeiT, AugReg and Uni-Perceiver use them."""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import map_over_batch
from jaxseg.models.layers import MLP, DType, LayerNorm, Linear, drop_path, kernel_param
from jaxseg.ops.linear import matmul
from jaxseg.ops.resize import resize_bicubic
from pallas_kernels import KernelChoice

PATCH = 16  # side of a patch, in pixels
STRIDE = 32  # of the coarsest features that heads receive, in pixels


class PatchConv(nn.Module):
    """A linear layer that maps every square patch of pixels to one token.

    A remainder at the bottom or on the right is no whole patch and is dropped.

    Attributes:
      patch: the side of a patch, in pixels.
    """

    embed_dim: int
    patch: int = PATCH
    kernel_init: Callable = nn.initializers.normal(0.02)
    bias_init: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        b, p = images.shape[0], self.patch
        h, w = (side // p for side in images.shape[1:3])
        kernel = kernel_param(self, self.kernel_init, (p, p, 3, self.embed_dim))
        bias = self.param("bias", self.bias_init, (self.embed_dim,))
        cells = images[:, : h * p, : w * p].reshape(b, h, p, w, p, 3)
        patches = cells.swapaxes(2, 3).reshape(b, h, w, -1)
        patches = matmul(patches.astype(self.dtype), kernel.reshape(-1, self.embed_dim))
        return patches + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    """The patch embedding of images, without positions; the tokens form a map.

    Its attributes are those of `PatchConv`.
    """

    embed_dim: int
    patch: int = PATCH
    kernel_init: Callable = nn.initializers.normal(0.02)
    bias_init: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        options = {key: getattr(self, key) for key in ("kernel_init", "bias_init", "dtype")}
        return PatchConv(self.embed_dim, self.patch, **options, name="proj")(images)


def split_windows(
    x: Float[Array, "b n d"], hw: Sequence[int], size: int
) -> Float[Array, "b h w s s d"]:
    """Splits the tokens of a grid into square windows.

    The grid is padded with zeros at the bottom and on the right.

    Args:
      x: the tokens, row after row.
      hw: height and width of the grid, in tokens.
      size: the side `s` of a window, in tokens.

    Returns:
      The tokens of each of the `h` × `w` windows.
    """
    b, _, width = x.shape
    h, w = -(hw[0] // -size), -(hw[1] // -size)
    margin = ((0, 0), (0, h * size - hw[0]), (0, w * size - hw[1]), (0, 0))
    grid = jnp.pad(x.reshape(b, *hw, width), margin)
    return grid.reshape(b, h, size, w, size, width).swapaxes(2, 3)


def merge_windows(x: Float[Array, "b h w s s d"], hw: Sequence[int]) -> Float[Array, "b n d"]:
    """Merges windows into the tokens of a grid without padding; the inverse of `split_windows`.

    Args:
      x: the windows.
      hw: height and width of the grid, in tokens.
    """
    b, h, w, size, _, width = x.shape
    grid = x.swapaxes(2, 3).reshape(b, h * size, w * size, width)
    return grid[:, : hw[0], : hw[1]].reshape(b, hw[0] * hw[1], width)


def implementation(module: nn.Module) -> str | None:
    """Returns the chosen implementation of a module's attention, or XLA during initialization."""
    return "xla" if module.is_initializing() else module.kernels.implementation


class ViTAttention(nn.Module):
    """Multi-head self-attention over all tokens or within square windows.

    As in the reference, padding tokens at the edge take part in the softmax of their window. Their
    queries, keys and values are zero.

    Attributes:
      num_heads: the number of heads.
      window: the side of a window in tokens, or None for attention over all tokens.
      kernels: the choice of kernels.
    """

    num_heads: int
    window: int | None = None
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    projections = ("qkv", "proj")  # names of the linear layers before and after attention

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], hw: Sequence[int]) -> Float[Array, "b n c"]:
        channels = x.shape[-1]
        before, after = self.projections
        x = Linear(3 * channels, dtype=self.dtype, name=before)(x)
        x = map_over_batch(functools.partial(self._attend, hw=hw))(x)
        return Linear(channels, dtype=self.dtype, name=after)(x)

    def _attend(self, qkv, hw):
        attend = functools.partial(
            pallas_kernels.self_attention,
            num_heads=self.num_heads,
            implementation=implementation(self),
        )
        if not self.window:
            return attend(qkv)
        parts = split_windows(qkv, hw, self.window)
        mixed = attend(parts.reshape(-1, self.window**2, qkv.shape[-1]))
        return merge_windows(mixed.reshape(*parts.shape[:-1], -1), hw)


class ViTBlock(nn.Module):
    """A transformer block: attention and an MLP, each in a residual branch that begins with a norm.

    Attributes:
      drop_path: the probability that a sample's branch is dropped in training.
      layer_scale: the initial value of the layer scales, or None for no layer scale.
      window: the side of an attention window in tokens, or None for attention over all tokens.
      kernels: the choice of kernels.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    layer_scale: float | None = 1.0
    window: int | None = None
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    attention_kind, attention_name = ViTAttention, "attn"
    gamma = "gamma{}"  # parameter name of the layer scale of branch 1 or 2
    epsilon = 1e-6  # of the layer norms

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], hw: Sequence[int], train: bool
    ) -> Float[Array, "b n c"]:
        for index, operation in ((1, lambda x: self.attention(x, hw)), (2, self.feed_forward)):
            branch = operation(LayerNorm(self.dtype, self.epsilon, name=f"norm{index}")(x))
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                gamma = self.param(self.gamma.format(index), init, x.shape[-1:])
                branch *= gamma.astype(self.dtype)
            x += drop_path(self.drop_path, train)(branch)
        return x

    def attention(self, x, hw):
        """Mixes the tokens [b, n, c] of a grid `hw` by attention."""
        attention = self.attention_kind(
            self.num_heads, self.window, self.kernels, self.dtype, name=self.attention_name
        )
        return attention(x, hw)

    def feed_forward(self, x):
        """Transforms every token separately by an MLP."""
        hidden_dim = int(x.shape[-1] * self.mlp_ratio)
        return MLP(hidden_dim, dtype=self.dtype, name="mlp")(x)


def drop_path_rate(index: int, depth: int, rate: float) -> float:
    """Returns the drop path rate of a block.

    It grows linearly from 0 for the first block to `rate` for the last.
    """
    return rate * index / max(depth - 1, 1)


def patch_grid(images: Float[Array, "b H W 3"], model: str) -> tuple[int, int]:
    """Returns the numbers of rows and columns of patches in an image.

    Args:
      images: a batch of images.
      model: the name of the model, for the error message.

    Raises:
      ValueError: if a side of the images is not a multiple of 32.
    """
    height, width = images.shape[1:3]
    if height % STRIDE or width % STRIDE:
        raise ValueError(
            f"{model}: an image of {height} x {width}; both sides have to be multiples of {STRIDE}"
        )
    return height // PATCH, width // PATCH


def absolute_positions(table: Float[Array, "1 m c"], hw: Sequence[int]) -> Float[Array, "1 h w c"]:
    """Resizes a table of absolute positions to a grid, bicubically.

    Args:
      table: the positions of the class token and of a square grid of patches. That of the class
        token is not used.
      hw: height and width of the new grid, in patches.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    return resize_bicubic(table[:, 1:].reshape(1, side, side, -1), hw)
