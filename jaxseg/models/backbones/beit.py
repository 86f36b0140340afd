"""BEiT (arXiv:2106.08254) and BEiTv2 (arXiv:2208.06366): ViTs with relative position bias.

`BEiT` is the backbone alone, and `BEiTAdapter` adds the adapter of ViT-Adapter.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import map_over_batch
from jaxseg.models.backbones import vit
from jaxseg.models.backbones.vit_adapter import ViTAdapter
from jaxseg.models.layers import BatchNorm, DType, Linear, Upsample, torch_uniform
from jaxseg.models.remat import remat_block
from jaxseg.ops.linear import gelu
from jaxseg.ops.position_tables import spline_matrix
from jaxseg.ops.resize import along_height, along_width
from pallas_kernels import KernelChoice
from pallas_kernels.relative_positions import OF_CLASS_TOKEN, table_rows


def resize_relative_positions(
    table: Float[Array, "rows g"], window: Sequence[int], hw: Sequence[int]
) -> Float[Array, "out_rows g"]:
    """Resizes a bias table to another grid inside a traced function.

    The result is that of `position_tables.resize_relative`.

    Args:
      table: the table of the grid `window`, for `g` heads.
      window: height and width of its grid, in patches.
      hw: height and width of the new grid, in patches.
    """
    patches, of_class = table[:-OF_CLASS_TOKEN], table[-OF_CLASS_TOKEN:]
    grid = patches.reshape(1, 2 * window[0] - 1, 2 * window[1] - 1, -1)
    grid = along_height(spline_matrix(window[0], hw[0]), grid)
    grid = along_width(spline_matrix(window[1], hw[1]), grid)
    return jnp.concatenate([grid.reshape(-1, table.shape[1]), of_class])


class BEiTAttention(nn.Module):
    """Self-attention with a learned bias for every displacement and head.

    The linear layer of the keys has no bias. For another grid than `window`, the table of position
    biases is interpolated when the model is traced. The reference interpolates it when it loads a
    model.

    Attributes:
      num_heads: the number of heads.
      window: the grid (h, w) of the table of position biases, or None for no position biases.
      kernels: the choice of kernels.
    """

    num_heads: int
    window: tuple[int, int] | None
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], hw: Sequence[int]) -> Float[Array, "b n c"]:
        channels = x.shape[-1]
        zeros = nn.initializers.zeros
        query_bias = self.param("q_bias", zeros, (channels,))
        value_bias = self.param("v_bias", zeros, (channels,))
        bias = jnp.concatenate([query_bias, jnp.zeros_like(query_bias), value_bias])
        qkv = Linear(3 * channels, use_bias=False, dtype=self.dtype, name="qkv")(x)
        qkv += bias.astype(self.dtype)
        attend = functools.partial(
            pallas_kernels.self_attention,
            num_heads=self.num_heads,
            implementation=vit.implementation(self),
        )
        if self.window is None:
            x = map_over_batch(attend)(qkv)
        else:
            shape = (table_rows(self.window), self.num_heads)
            table = self.param("relative_position_bias_table", zeros, shape)
            # Mapped over the batch, so that the all-reduce sums gradients of the table, not of the
            # biases of all pairs.
            attend = functools.partial(self._attend, attend, hw=tuple(hw))
            x = map_over_batch(attend, num_replicated=1)(qkv, table)
        return Linear(channels, dtype=self.dtype, name="proj")(x)

    def _attend(self, attend, qkv, table, hw):
        # Without the barrier, XLA computes the biases of all blocks before it runs the first one.
        # They take gigabytes.
        qkv, table = lax.optimization_barrier((qkv, table))
        if hw != tuple(self.window):
            table = resize_relative_positions(table, self.window, hw)
        return attend(qkv, table, grid=hw)


class BEiTBlock(vit.ViTBlock):
    """A block of BEiT, whose first token is the class token.

    The argument `hw` of its call is the grid of the other tokens.

    Attributes:
      window: the grid (h, w) of the table of position biases, or None (see `BEiTAttention`).
    """

    window: tuple[int, int] | None = None
    layer_scale: float | None = 1e-6

    attention_kind = BEiTAttention
    gamma = "gamma_{}"


class Trunk:
    """A mixin with the embedding and the blocks, for modules that have the fields of `BEiT`."""

    def embed(self, images):
        """Returns the tokens [b, n, c] of images and their class token [b, 1, c]."""
        x = vit.PatchEmbed(self.embed_dim, dtype=self.dtype, name="patch_embed")(images)
        token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.embed_dim))
        batch = x.shape[0]
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.embed_dim))
        return x.reshape(batch, -1, self.embed_dim), token

    def block(self, index):
        """Creates the block with the given index."""
        kind = BEiTBlock
        if self.remat:
            kind = remat_block(kind, self.remat_keeps, static_argnums=(2, 3))
        return kind(
            self.num_heads,
            self.mlp_ratio,
            drop_path=vit.drop_path_rate(index, self.depth, self.drop_path),
            layer_scale=self.layer_scale,
            window=tuple(self.window),
            kernels=self.kernels,
            dtype=self.dtype,
            name=f"blocks_{index}",
        )


class BEiT(Trunk, nn.Module):
    """BEiT without an adapter: features at strides 4, 8, 16 and 32, all `embed_dim` wide.

    The features are the patch tokens after four blocks. Transposed convolutions enlarge the first
    map 4 times and the second map 2 times. The third map is unchanged, and max-pooling halves the
    fourth map.

    Attributes:
      out_indices: the indices of the four blocks, in ascending order.
      drop_path: the drop path rate of the last block. It grows linearly from 0 for the first.
      layer_scale: the initial value of the layer scales, or None for no layer scale.
      window: the grid (h, w) of the tables of position biases.
      remat: whether the blocks recompute their values in the backward pass.
      remat_keeps: the values that they keep nevertheless, a key of `jaxseg.models.remat.KEPT`.
      kernels: the choice of kernels.

    Raises:
      ValueError: if a side of the images is not a multiple of 32.
      ValueError: if `out_indices` are not four ascending indices of blocks.
    """

    embed_dim: int
    depth: int
    num_heads: int
    out_indices: Sequence[int]
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    layer_scale: float | None = 1e-6
    window: tuple[int, int] = (32, 32)
    remat: bool = False
    remat_keeps: str = "kernels"
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    side_multiple = vit.STRIDE  # sides of images must be multiples of it
    takes_padding = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> list[Float[Array, "b _ _ _"]]:
        indices = tuple(self.out_indices)
        if len(indices) != 4 or indices != tuple(i for i in range(self.depth) if i in indices):
            raise ValueError(
                f"BEiT: out_indices={indices} must be four ascending block indices below"
                f" depth={self.depth}"
            )
        hw = vit.patch_grid(images, "BEiT")
        tokens, class_token = self.embed(images)
        x = jnp.concatenate([class_token, tokens], axis=1)
        taken = []
        for i in range(self.depth):
            x = self.block(i)(x, hw, train)
            if i in indices:
                taken.append(x[:, 1:].reshape(x.shape[0], *hw, -1))
        x4, x8, x16, x32 = taken
        x4 = self.enlarge("fpn1_0", x4)
        x4 = self.enlarge("fpn1_3", gelu(BatchNorm(name="fpn1_1")(x4, train)))
        x8 = self.enlarge("fpn2_0", x8)
        return [x4, x8, x16, nn.max_pool(x32, window_shape=(2, 2), strides=(2, 2))]

    def enlarge(self, name, x):
        """Doubles the sides of a map by a transposed convolution."""
        init = torch_uniform(4 * self.embed_dim)
        return Upsample(kernel_init=init, bias_init=init, dtype=self.dtype, name=name)(x)


class BEiTAdapter(Trunk, ViTAdapter):
    """BEiT with the adapter of ViT-Adapter (see `ViTAdapter`).

    Attributes:
      window: the grid (h, w) of the tables of position biases.
      layer_scale: the initial value of the layer scales, or None for no layer scale.
    """

    window: tuple[int, int] = (32, 32)
    layer_scale: float | None = 1e-6
    initial_gamma: float = 1e-6
