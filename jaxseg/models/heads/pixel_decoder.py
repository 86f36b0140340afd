"""Mask2Former's pixel decoder (arXiv:2112.01527): a deformable encoder over all but the finest map.

The tokens of these maps are concatenated from coarse to fine. A `Pyramid` holds their grids.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.deformable_attention import (
    MSDeformAttn,
    Pyramid,
    reference_points,
    to_maps,
    to_tokens,
)
from jaxseg.models.heads.mask2former_layers import EPSILON, FFN, learned_embedding
from jaxseg.models.heads.sine_positions import sine_positions
from jaxseg.models.layers import Conv, DType, LayerNorm
from jaxseg.models.remat import remat_block
from jaxseg.ops.resize import resize_bilinear
from pallas_kernels import KernelChoice

LECUN_UNIFORM = nn.initializers.lecun_uniform()  # the reference's initializer of convolutions


class ConvGN(nn.Module):
    """A convolution followed by group norm."""

    features: int
    kernel_size: int
    groups: int
    use_bias: bool = False
    kernel_init: Callable = LECUN_UNIFORM
    dtype: DType = jnp.float32
    kernels: KernelChoice = KernelChoice()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        x = Conv(
            self.features,
            self.kernel_size,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            kernels=self.kernels,
            name="conv",
        )(x)
        return nn.GroupNorm(
            self.groups, epsilon=EPSILON, use_fast_variance=False, dtype=self.dtype, name="gn"
        )(x)


class EncoderLayer(nn.Module):
    """An encoder layer: deformable attention and an FFN, each a residual branch followed by a norm.

    Positions are added only to the queries.
    """

    num_heads: int
    num_points: int
    ffn_dim: int
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b s c"], positions: Float[Array, "1 s c"], pyramid: Pyramid
    ) -> Float[Array, "b s c"]:
        attention = MSDeformAttn(
            self.num_heads,
            self.num_points,
            kernels=self.kernels,
            dtype=self.dtype,
            name="attentions_0",
        )
        tokens += attention(tokens + positions, reference_points(pyramid), tokens, pyramid)
        tokens = LayerNorm(self.dtype, EPSILON, name="norms_0")(tokens)
        tokens += FFN(self.ffn_dim, dtype=self.dtype, name="ffns_0")(tokens)
        return LayerNorm(self.dtype, EPSILON, name="norms_1")(tokens)


class Encoder(nn.Module):
    """A sequence of encoder layers, in which each token attends to points in all maps."""

    num_layers: int
    num_heads: int
    num_points: int
    ffn_dim: int
    remat: bool
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b s c"], positions: Float[Array, "1 s c"], pyramid: Pyramid
    ) -> Float[Array, "b s c"]:
        kind = remat_block(EncoderLayer, "kernels", [3]) if self.remat else EncoderLayer
        for i in range(self.num_layers):
            layer = kind(
                self.num_heads,
                self.num_points,
                self.ffn_dim,
                self.kernels,
                self.dtype,
                name=f"layers_{i}",
            )
            tokens = layer(tokens, positions, pyramid)
        return tokens


class MSDeformAttnPixelDecoder(nn.Module):
    """Turns the features of a backbone into a map for mask prediction and maps to attend to.

    The features are ordered from fine to coarse. The first result is a map at the finest size, with
    which the queries' mask embeddings are compared. The second result holds the encoder's maps from
    coarse to fine. All results have `channels` channels.

    As in the reference, only the finest map is left out of the encoder. The encoder's finest map is
    resized and added to it at the end.

    Attributes:
      num_points: the number of points of the deformable attention, per head and level.
      ffn_dim: the hidden width of the encoder's FFNs.
      norm_groups: the number of groups of the group norms.
      remat: whether the encoder's layers recompute their values in the backward pass.
    """

    channels: int = 256
    num_layers: int = 6
    num_heads: int = 8
    num_points: int = 4
    ffn_dim: int = 1024
    norm_groups: int = 32
    remat: bool = False
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b _ _ _"]]
    ) -> tuple[Float[Array, "b p q d"], list[Float[Array, "b _ _ d"]]]:
        def conv_gn(name, kernel_size, **options):
            return ConvGN(
                self.channels,
                kernel_size,
                self.norm_groups,
                dtype=self.dtype,
                kernels=self.kernels,
                name=name,
                **options,
            )

        finest, *coarser = features
        with_bias = {"use_bias": True, "kernel_init": nn.initializers.xavier_uniform()}
        maps = [conv_gn(f"input_convs_{i}", 1, **with_bias)(x) for i, x in enumerate(coarser[::-1])]
        pyramid = tuple(x.shape[1:3] for x in maps)
        levels = learned_embedding(len(maps), self.channels, "level_encoding")
        positions = to_tokens(
            [
                sine_positions(hw, self.channels).astype(levels.dtype)[None] + level
                for hw, level in zip(pyramid, levels, strict=True)
            ]
        )
        encoder = Encoder(
            self.num_layers,
            self.num_heads,
            self.num_points,
            self.ffn_dim,
            self.remat,
            self.kernels,
            self.dtype,
            name="encoder",
        )
        tokens = encoder(to_tokens(maps), positions.astype(self.dtype), pyramid)
        memories = to_maps(tokens, pyramid)

        x = conv_gn("lateral_convs_0", 1)(finest)
        x += resize_bilinear(memories[-1], x.shape[1:3])
        x = nn.relu(conv_gn("output_convs_0", 3)(x))
        mask_features = Conv(
            self.channels,
            1,
            kernel_init=LECUN_UNIFORM,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="mask_feature",
        )(x)
        return mask_features, memories
