"""ViT-Adapter: a convolutional adapter that gives a plain ViT multi-scale features.

The paper is Vision Transformer Adapter for Dense Predictions (arXiv:2205.08534). The adapter has
tokens of three scales (1/8, 1/16, 1/32), concatenated from fine to coarse. A `Pyramid` holds their
grids.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.backbones import vit
from jaxseg.models.deformable_attention import (
    Grid,
    MSDeformAttn,
    Pyramid,
    reference_points,
    to_maps,
    to_tokens,
)
from jaxseg.models.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    DType,
    LayerNorm,
    Linear,
    Upsample,
    drop_path,
    max_pool3x3_stride2,
)
from jaxseg.models.remat import remat_block
from jaxseg.ops.linear import gelu
from jaxseg.ops.resize import resize_bilinear
from pallas_kernels import KernelChoice


class Injector(nn.Module):
    """Deformable attention that adds the adapter's features to the ViT's tokens.

    The added features are scaled by a learned gamma.
    """

    num_heads: int
    num_points: int
    ratio: float
    initial_gamma: float
    epsilon: float = 1e-6
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], c: Float[Array, "b s c"], hw: Grid, pyramid: Pyramid
    ) -> Float[Array, "b n c"]:
        attention = MSDeformAttn(
            self.num_heads, self.num_points, self.ratio, self.kernels, self.dtype, name="attn"
        )
        query = LayerNorm(self.dtype, self.epsilon, name="query_norm")(x)
        features = LayerNorm(self.dtype, self.epsilon, name="feat_norm")(c)
        gamma = self.param("gamma", nn.initializers.constant(self.initial_gamma), (x.shape[-1],))
        mixed = attention(query, reference_points((hw,)), features, pyramid)
        return x + gamma.astype(self.dtype) * mixed


class DWConv(nn.Module):
    """A depthwise 3 × 3 convolution that treats each scale as a separate image."""

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b s c"], pyramid: Pyramid) -> Float[Array, "b s c"]:
        convolve = DepthwiseConv(3, dtype=self.dtype, name="dwconv")
        maps = [convolve(x) for x in to_maps(tokens, pyramid)]
        return to_tokens(maps)


class ConvFFN(nn.Module):
    """Two linear layers with a depthwise 3 × 3 convolution between them, over a token pyramid."""

    hidden_dim: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b s c"], pyramid: Pyramid) -> Float[Array, "b s c"]:
        hidden = Linear(self.hidden_dim, dtype=self.dtype, name="fc1")(tokens)
        hidden = gelu(DWConv(dtype=self.dtype, name="dwconv")(hidden, pyramid))
        return Linear(tokens.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class Extractor(nn.Module):
    """Deformable attention that adds the ViT's features to the adapter's tokens, and an FFN.

    Attributes:
      ffn_ratio: the hidden width of the FFN as a share of that of the tokens, or None for no FFN.
    """

    num_heads: int
    num_points: int
    ratio: float
    ffn_ratio: float | None = 0.25
    drop_path: float = 0.0
    epsilon: float = 1e-6
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        c: Float[Array, "b s c"],
        x: Float[Array, "b n c"],
        hw: Grid,
        pyramid: Pyramid,
        train: bool,
    ) -> Float[Array, "b s c"]:
        attention = MSDeformAttn(
            self.num_heads, self.num_points, self.ratio, self.kernels, self.dtype, name="attn"
        )
        query = LayerNorm(self.dtype, self.epsilon, name="query_norm")(c)
        features = LayerNorm(self.dtype, self.epsilon, name="feat_norm")(x)
        c += attention(query, reference_points(pyramid), features, (hw,))
        if self.ffn_ratio is not None:
            ffn = ConvFFN(int(c.shape[-1] * self.ffn_ratio), dtype=self.dtype, name="ffn")
            branch = ffn(LayerNorm(self.dtype, self.epsilon, name="ffn_norm")(c), pyramid)
            c += drop_path(self.drop_path, train)(branch)
        return c


class SpatialPriorModule(nn.Module):
    """A small convolutional network whose maps at 1/4, 1/8, 1/16 and 1/32 start the adapter.

    Attributes:
      inplanes: the number of channels of the first layers.
      embed_dim: the number of channels of the maps.
    """

    inplanes: int
    embed_dim: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], train: bool
    ) -> list[Float[Array, "b _ _ _"]]:
        def conv_bn_relu(x, names, features, stride):
            init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
            conv = Conv(
                features, 3, stride, False, kernel_init=init, dtype=self.dtype, name=names[0]
            )
            return nn.relu(BatchNorm(name=names[1])(conv(x), train))

        width = self.inplanes
        x = conv_bn_relu(images, ("stem_0", "stem_1"), width, 2)
        x = conv_bn_relu(x, ("stem_3", "stem_4"), width, 1)
        x = conv_bn_relu(x, ("stem_6", "stem_7"), width, 1)
        maps = [max_pool3x3_stride2(x)]
        for i, features in ((2, 2 * width), (3, 4 * width), (4, 4 * width)):
            maps.append(conv_bn_relu(maps[-1], (f"conv{i}_0", f"conv{i}_1"), features, 2))
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        return [
            Conv(
                self.embed_dim,
                1,
                kernel_init=fan_out,
                bias_init=nn.initializers.zeros,
                dtype=self.dtype,
                name=f"fc{i}",
            )(x)
            for i, x in enumerate(maps, start=1)
        ]


class InteractionBlock(nn.Module):
    """An interaction of ViT and adapter: an injector, some blocks of the ViT, and an extractor.

    The last interaction has more extractors (`extra_extractors`). The adapter does not see the
    class token. The class token is [b, 1, c], or [b, 0, c] for a ViT without one.
    """

    num_heads: int
    num_points: int = 4
    ratio: float = 1.0
    ffn_ratio: float | None = 0.25
    initial_gamma: float = 0.0
    drop_path: float = 0.0
    extra_extractors: int = 0
    epsilon: float = 1e-6
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        class_token: Float[Array, "b k c"],
        c: Float[Array, "b s c"],
        blocks: Sequence[nn.Module],
        hw: Grid,
        pyramid: Pyramid,
        train: bool,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b k c"], Float[Array, "b s c"]]:
        deformable = (self.num_heads, self.num_points, self.ratio)
        options = {"epsilon": self.epsilon, "kernels": self.kernels, "dtype": self.dtype}
        injector = Injector(*deformable, self.initial_gamma, **options, name="injector")
        x = injector(x, c, hw, pyramid)
        x = jnp.concatenate([class_token, x], axis=1)
        for block in blocks:
            x = block(x, hw, train)
        class_token, x = jnp.split(x, [class_token.shape[1]], axis=1)
        extract = functools.partial(
            Extractor, *deformable, self.ffn_ratio, self.drop_path, **options
        )
        for name in extractor_names(self.extra_extractors):
            c = extract(name=name)(c, x, hw, pyramid, train)
        return x, class_token, c


def extractor_names(extra: int) -> list[str]:
    """Returns the names of the extractors of an interaction, of which `extra` are extra ones."""
    return ["extractor", *(f"extra_extractors_{i}" for i in range(extra))]


class AdapterEnds:
    """A mixin with what comes before and after the interactions.

    It is for modules with the fields `conv_inplane`, `embed_dim`, `add_vit_feature` and `dtype`.
    """

    def first_tokens(
        self, images: Float[Array, "b H W 3"], train: bool
    ) -> tuple[Float[Array, "b _ _ c"], Float[Array, "b s c"]]:
        """Returns the spatial prior of images: the map at stride 4, and the adapter's tokens."""
        prior = SpatialPriorModule(self.conv_inplane, self.embed_dim, dtype=self.dtype, name="spm")
        c1, *coarser = prior(images.astype(self.dtype), train)
        levels = self.param("level_embed", nn.initializers.normal(1.0), (3, self.embed_dim))
        levels = levels.astype(self.dtype)
        return c1, to_tokens([x + level for x, level in zip(coarser, levels, strict=True)])

    def features(
        self,
        c1: Float[Array, "b _ _ c"],
        c: Float[Array, "b s c"],
        pyramid: Pyramid,
        of_vit: Sequence[Float[Array, "b h w c"]],
        train: bool,
    ) -> list[Float[Array, "b _ _ c"]]:
        """Returns the features at strides 4, 8, 16 and 32.

        Args:
          c1: the map of the spatial prior at stride 4.
          c: the adapter's tokens after the last interaction.
          pyramid: their grids.
          of_vit: the maps of the ViT, which are added if `add_vit_feature` is set.
          train: whether batch norm is in training.
        """
        c2, c3, c4 = to_maps(c, pyramid)
        maps = [Upsample(dtype=self.dtype, name="up")(c2) + c1, c2, c3, c4]
        if self.add_vit_feature:
            sizes = [x.shape[1:3] for x in maps]
            maps = [
                x + resize_bilinear(feature, size)
                for x, feature, size in zip(maps, of_vit, sizes, strict=True)
            ]
        return [BatchNorm(name=f"norm{i}")(x, train) for i, x in enumerate(maps, start=1)]


class ViTAdapter(AdapterEnds, nn.Module):
    """A plain ViT with its adapter: features at strides 4, 8, 16 and 32, all `embed_dim` wide.

    Attributes:
      interaction_indexes: the first and the last block of the ViT in every interaction.
      deform_num_heads: the number of heads of the deformable attention.
      deform_ratio: the width of its values as a share of `embed_dim`.
      drop_path: the drop path rate of the extractors and of the last block of the ViT. The rates of
        its blocks grow linearly from 0 for the first.
      conv_inplane: the number of channels of the adapter's first layers.
      num_points: the number of points of the deformable attention, per head and level.
      ffn_ratio: the hidden width of the extractors' FFNs as a share of `embed_dim`, or None for no
        FFNs.
      initial_gamma: the initial scale of the features that injectors add.
      extra_extractors: the number of further extractors that read the tokens of the last
        interaction.
      add_vit_feature: whether the ViT's tokens after each interaction are added to the features.
      pretrain_grid: the side of the table of positions, in patches.
      window: the side of the attention windows, in tokens.
      window_blocks: the indices of the blocks with windowed attention.
      remat: whether the blocks recompute their values in the backward pass.
      remat_keeps: the values that they keep nevertheless, a key of `jaxseg.models.remat.KEPT`.

    Raises:
      ValueError: if a side of the images is not a multiple of 32.
    """

    embed_dim: int
    depth: int
    num_heads: int
    interaction_indexes: Sequence[Sequence[int]]
    deform_num_heads: int
    deform_ratio: float = 1.0
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    conv_inplane: int = 64
    num_points: int = 4
    ffn_ratio: float | None = 0.25
    initial_gamma: float = 0.0
    extra_extractors: int = 2
    add_vit_feature: bool = True
    pretrain_grid: int = 14
    window: int | None = None
    window_blocks: Sequence[int] = ()
    remat: bool = False
    remat_keeps: str = "kernels"
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    block_kind, block_name = vit.ViTBlock, "blocks_{}"  # of the ViT
    epsilon = 1e-6  # of the adapter's layer norms
    side_multiple = vit.STRIDE  # sides of images must be multiples of it
    takes_padding = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> list[Float[Array, "b _ _ _"]]:
        h, w = hw = vit.patch_grid(images, "ViT-Adapter")
        pyramid = ((2 * h, 2 * w), hw, (h // 2, w // 2))

        c1, c = self.first_tokens(images, train)
        x, class_token = self.embed(images)

        of_vit = []
        for i, (first, last) in enumerate(self.interaction_indexes):
            blocks = [self.block(k) for k in range(first, last + 1)]
            final = i == len(self.interaction_indexes) - 1
            interaction = InteractionBlock(
                self.deform_num_heads,
                self.num_points,
                self.deform_ratio,
                self.ffn_ratio,
                self.initial_gamma,
                self.drop_path,
                self.extra_extractors if final else 0,
                self.epsilon,
                self.kernels,
                self.dtype,
                name=f"interactions_{i}",
            )
            x, class_token, c = interaction(x, class_token, c, blocks, hw, pyramid, train)
            of_vit.append(x.reshape(x.shape[0], *hw, -1))
        return self.features(c1, c, pyramid, of_vit, train)

    def embed(self, images):
        """Returns the tokens [b, n, c] of images and their class token [b, k, c].

        A plain ViT has no class token here (k = 0).
        """
        x = vit.PatchEmbed(self.embed_dim, dtype=self.dtype, name="patch_embed")(images)
        shape = (1, 1 + self.pretrain_grid**2, self.embed_dim)
        table = self.param("pos_embed", nn.initializers.normal(0.02), shape)
        x += vit.absolute_positions(table, x.shape[1:3]).astype(self.dtype)
        x = x.reshape(x.shape[0], -1, self.embed_dim)
        return x, x[:, :0]

    def block(self, index):
        """Creates the block of the ViT with the given index."""
        kind = self.block_kind
        if self.remat:
            kind = remat_block(kind, self.remat_keeps, static_argnums=(2, 3))
        return kind(
            self.num_heads,
            self.mlp_ratio,
            drop_path=vit.drop_path_rate(index, self.depth, self.drop_path),
            window=self.window if index in self.window_blocks else None,
            kernels=self.kernels,
            dtype=self.dtype,
            name=self.block_name.format(index),
        )
