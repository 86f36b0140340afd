"""The vision transformers of DINOv3 (arXiv:2508.10104): rotary positions, storage tokens, SwiGLU.

Tokens are ordered: the class token, the storage tokens, and the patches row after row.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import map_over_batch
from jaxseg.models.backbones import vit
from jaxseg.models.layers import MLP, DType, LayerNorm, Linear, kernel_param, torch_uniform
from jaxseg.models.remat import remat_block
from jaxseg.ops.linear import matmul
from jaxseg.ops.rotary import patch_coordinates, rotary_periods, rotary_table, rotate
from pallas_kernels import KernelChoice

EPSILON = 1e-5  # of the layer norms of all published models
# Kinds of SwiGLU, and what their hidden width is a multiple of.
MULTIPLES = {"swiglu": 8, "swiglu32": 32, "swiglu64": 64, "swiglu128": 128, "swiglufused": 8}
Table = tuple[Float[Array, "m d"], Float[Array, "m d"]]  # sines and cosines


class Intermediate(NamedTuple):
    """Holds the tokens after a block, normalized by the last norm.

    Attributes:
      patches: the tokens of the patches, as a map.
      class_token: the class token.
      storage_tokens: the storage tokens.
    """

    patches: Float[Array, "b h w c"]
    class_token: Float[Array, "b c"]
    storage_tokens: Float[Array, "b s c"]


class RotaryPositions(nn.Module):
    """Makes the table of rotary positions of a grid of patches.

    The periods are no parameters. They are among the batch statistics because a published file may
    have them rounded to bfloat16.

    Attributes:
      head_width: the number of channels of a head.
      rescale: in training, coordinates are multiplied by a random factor up to this, or divided by
        it; anew in every call.
    """

    head_width: int
    rescale: float = 2.0

    @nn.compact
    def __call__(self, hw: Sequence[int], train: bool) -> Table:
        periods = self.variable(
            "batch_stats", "periods", lambda: jnp.asarray(rotary_periods(self.head_width))
        )
        coordinates = patch_coordinates(hw)
        if train:
            limit = math.log(self.rescale)
            key = self.make_rng("dropout")
            coordinates *= jnp.exp(jax.random.uniform(key, (), minval=-limit, maxval=limit))
        return rotary_table(coordinates, periods.value)


class QKV(nn.Module):
    """The linear layer of queries, keys and values, whose keys have no bias.

    Attributes:
      use_bias: whether queries and values have a bias. It is a vector for all three, of which the
        part of the keys does not count.
      masks_key_bias: False lets that part count, which no published model does.
    """

    use_bias: bool = True
    masks_key_bias: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n 3*c"]:
        channels = x.shape[-1]
        kernel = kernel_param(self, nn.initializers.normal(0.02), (channels, 3 * channels))
        x = matmul(x.astype(self.dtype), kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (3 * channels,))
            if self.masks_key_bias:
                of_query, _, of_value = jnp.split(bias, 3)
                bias = jnp.concatenate([of_query, jnp.zeros_like(of_query), of_value])
            x += bias.astype(self.dtype)
        return x


class DINOv3Attention(nn.Module):
    """Multi-head self-attention over all tokens, with rotary positions for the patches.

    Attributes:
      use_bias: whether queries and values have a bias.
      masks_key_bias: see `QKV`.
    """

    num_heads: int
    use_bias: bool = True
    masks_key_bias: bool = True
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], table: Table | None) -> Float[Array, "b n c"]:
        channels = x.shape[-1]
        qkv = QKV(self.use_bias, self.masks_key_bias, self.dtype, name="qkv")(x)
        if table is not None:
            turned, values = jnp.split(qkv, [2 * channels], axis=-1)
            heads = turned.reshape(*turned.shape[:2], 2 * self.num_heads, -1)
            turned = rotate(heads, *table).reshape(turned.shape)
            qkv = jnp.concatenate([turned, values], axis=-1)
        attend = functools.partial(
            pallas_kernels.self_attention,
            num_heads=self.num_heads,
            implementation=vit.implementation(self),
        )
        return Linear(channels, dtype=self.dtype, name="proj")(map_over_batch(attend)(qkv))


def swiglu_width(channels: int, ratio: float, multiple: int) -> int:
    """Returns the hidden width of a SwiGLU: two thirds of `ratio`, rounded up to `multiple`."""
    width = int(int(channels * ratio) * 2 / 3)
    return -(width // -multiple) * multiple


class SwiGLU(nn.Module):
    """The gated feed-forward layer of arXiv:2002.05202: w3(silu(w1 x) · w2 x).

    Attributes:
      fused: whether w1 and w2 are one linear layer, w12.
    """

    hidden_dim: int
    fused: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        def linear(name, features):
            return Linear(features, dtype=self.dtype, name=name)(x)

        if self.fused:
            gate, value = jnp.split(linear("w12", 2 * self.hidden_dim), 2, axis=-1)
        else:
            gate, value = (linear(name, self.hidden_dim) for name in ("w1", "w2"))
        return Linear(x.shape[-1], dtype=self.dtype, name="w3")(nn.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor for every channel, in float32."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), x.shape[-1:])
        return x.astype(jnp.float32) * gamma.astype(jnp.float32)


class DINOv3Block(nn.Module):
    """A transformer block: attention and a feed-forward layer, each in a scaled residual branch.

    The residual stream is in float32, whatever the type of the products, as in the original.

    Attributes:
      ffn: the kind of feed-forward layer: "mlp" or a key of `MULTIPLES`. The layers for gate and
        value are one in "swiglufused".
      ffn_ratio: its hidden width as a multiple of that of the tokens; see `swiglu_width`.
      layer_scale: the initial value of the layer scales, or None for no layer scale.
      use_bias: whether queries and values have a bias.
      masks_key_bias: see `QKV`.
      epsilon: of the layer norms.
    """

    num_heads: int
    ffn: str = "mlp"
    ffn_ratio: float = 4.0
    layer_scale: float | None = 1e-5
    use_bias: bool = True
    masks_key_bias: bool = True
    epsilon: float = EPSILON
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], table: Table | None) -> Float[Array, "b n c"]:
        attention = DINOv3Attention(
            self.num_heads,
            self.use_bias,
            self.masks_key_bias,
            self.kernels,
            self.dtype,
            name="attn",
        )
        feed_forward = self._feed_forward(x.shape[-1])
        x = x.astype(jnp.float32)
        x += self._scaled("ls1", attention(self._norm("norm1")(x), table))
        return x + self._scaled("ls2", feed_forward(self._norm("norm2")(x)))

    def _norm(self, name):
        return LayerNorm(self.dtype, self.epsilon, name=name)

    def _scaled(self, name, branch):
        if self.layer_scale is None:
            return branch.astype(jnp.float32)
        return LayerScale(self.layer_scale, name=name)(branch)

    def _feed_forward(self, channels):
        if self.ffn == "mlp":
            return MLP(int(channels * self.ffn_ratio), dtype=self.dtype, name="mlp")
        if self.ffn not in MULTIPLES:
            known = ", ".join(["mlp", *MULTIPLES])
            raise ValueError(f"backbone.ffn={self.ffn!r}: must be one of {known}")
        width = swiglu_width(channels, self.ffn_ratio, MULTIPLES[self.ffn])
        return SwiGLU(width, self.ffn == "swiglufused", self.dtype, name="mlp")


class Transformer(nn.Module):
    """The transformer, for backbones that read from some of its blocks.

    Attributes:
      ffn: the kind of feed-forward layer (`DINOv3Block`).
      ffn_ratio: its hidden width as a multiple of `embed_dim`.
      storage_tokens: the number of storage tokens, which are called registers, too.
      use_bias: whether queries and values have a bias.
      patch: the side of a patch, in pixels.
      final_norm: whether what is read is normalized by the last norm.
      untied_norms: whether the class token and the storage tokens have a last norm of their own.
      remat: whether the blocks recompute their values in the backward pass.
      remat_keeps: the values that they keep nevertheless, a key of `jaxseg.models.remat.KEPT`.
      kernels: the choice of kernels.
    """

    embed_dim: int
    depth: int
    num_heads: int
    ffn: str = "mlp"
    ffn_ratio: float = 4.0
    storage_tokens: int = 4
    use_bias: bool = True
    patch: int = vit.PATCH
    final_norm: bool = True
    untied_norms: bool = False
    remat: bool = False
    remat_keeps: str = "kernels"
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    takes_padding = False
    epsilon = EPSILON  # of the layer norms
    initial_scale = 1e-5  # of the layer scales
    masks_key_bias = True  # see `QKV`

    def intermediate(
        self, images: Float[Array, "b H W 3"], indices: Sequence[int], train: bool
    ) -> list[Intermediate]:
        """Runs the transformer and returns the tokens after some of its blocks.

        A remainder of the images at the bottom or on the right is no whole patch and is dropped.

        Args:
          images: a batch of images.
          indices: the indices of the blocks, in ascending order.
          train: whether the coordinates of the patches are augmented.

        Raises:
          ValueError: if the indices do not ascend or are not those of blocks.
        """
        if list(indices) != [i for i in range(self.depth) if i in indices] or not indices:
            raise ValueError(
                f"{type(self).__name__}: the block indices {tuple(indices)} must ascend and be"
                f" below depth={self.depth}"
            )
        patches = self._embed(images)
        b, h, w, channels = patches.shape
        x = self._with_prefix(patches)
        table_of_block = self._positions((h, w), train)
        taken = []
        for index in range(max(indices) + 1):
            x = self._block(index)(x, table_of_block())
            if index in indices:
                taken.append(x)
        norm = self._final_norm("norm")
        of_prefix = self._final_norm("cls_norm") if self.untied_norms else norm
        results = []
        for x in taken:
            first, rest = jnp.split(x, [1 + self.storage_tokens], axis=1)
            first, rest = of_prefix(first), norm(rest)
            maps = rest.reshape(b, h, w, channels)
            results.append(Intermediate(maps, first[:, 0], first[:, 1:]))
        return results

    def _embed(self, images):
        """Returns the tokens of the patches, as a map."""
        init = torch_uniform(3 * self.patch**2)
        embed = vit.PatchEmbed(
            self.embed_dim, self.patch, init, init, dtype=self.dtype, name="patch_embed"
        )
        return embed(images)

    def _with_prefix(self, patches):
        """Returns the tokens of the patches after the class token and the storage tokens."""
        prefix = [self.tokens("cls_token", 1)]
        if self.storage_tokens:
            prefix.append(self.tokens("storage_tokens", self.storage_tokens))
        return join_tokens(prefix, patches)

    def tokens(self, name: str, count: int) -> Float[Array, "1 k c"]:
        """Returns learned tokens, which are the same for all images."""
        shape = (1, count, self.embed_dim)
        return self.param(name, nn.initializers.normal(0.02), shape).astype(self.dtype)

    def _positions(self, hw, train):
        """Returns a function that gives each block its table of positions."""
        positions = RotaryPositions(self.embed_dim // self.num_heads, name="rope_embed")
        table = positions(hw, False)
        if not train or self.is_initializing():
            return lambda: table
        return lambda: positions(hw, True)  # every block has its own random factor

    def _block(self, index) -> Callable[..., Float[Array, "b n c"]]:
        kind = remat_block(DINOv3Block, self.remat_keeps) if self.remat else DINOv3Block
        return kind(
            self.num_heads,
            self.ffn,
            self.ffn_ratio,
            self.initial_scale,
            self.use_bias,
            self.masks_key_bias,
            self.epsilon,
            self.kernels,
            self.dtype,
            name=f"blocks_{index}",
        )

    def _final_norm(self, name):
        if not self.final_norm:
            return lambda x: x
        return LayerNorm(self.dtype, self.epsilon, name=name)


def join_tokens(
    prefix: Sequence[Float[Array, "1 _ c"]], patches: Float[Array, "b h w c"]
) -> Float[Array, "b n c"]:
    """Returns learned tokens, the same for all images, and the tokens of a map after them."""
    b, _, _, channels = patches.shape
    learned = [jnp.broadcast_to(token, (b, *token.shape[1:])) for token in prefix]
    return jnp.concatenate([*learned, patches.reshape(b, -1, channels)], axis=1)


class DINOv3(Transformer):
    """A transformer of DINOv3: feature maps after some of its blocks, all at the stride of a patch.

    Attributes:
      out_indices: the indices of these blocks, in ascending order.
    """

    out_indices: Sequence[int] = ()

    side_multiple = 1  # images of any size

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> list[Float[Array, "b h w c"]]:
        taken = self.intermediate(images, self.out_indices, train)
        return [tokens.patches for tokens in taken]
