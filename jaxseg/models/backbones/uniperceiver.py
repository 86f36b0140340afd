"""Uni-Perceiver (arXiv:2112.01522): the image encoder of a multimodal transformer."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.backbones import vit
from jaxseg.models.backbones.vit_adapter import ViTAdapter
from jaxseg.models.layers import DType, LayerNorm, Linear
from jaxseg.ops.linear import gelu
from jaxseg.ops.resize import resize_bicubic

FRAMES = 8  # rows of the table of temporal positions; an image is the first frame
EPSILON = 1e-5  # of all layer norms, including those of the adapter


class UniPerceiverAttention(vit.ViTAttention):
    """The attention of a ViT with Uni-Perceiver's parameter names."""

    projections = ("in_proj", "out_proj")


class UniPerceiverBlock(vit.ViTBlock):
    """The block of a ViT with Uni-Perceiver's parameter names and layer scales that start at 0.

    The reference applies drop path before layer scale. The order does not change the result.
    """

    layer_scale: float | None = 0.0

    attention_kind, attention_name = UniPerceiverAttention, "self_attn"
    gamma = "gamma_{}"
    epsilon = EPSILON

    def feed_forward(self, x):
        channels = x.shape[-1]
        hidden_dim = int(channels * self.mlp_ratio)
        x = gelu(Linear(hidden_dim, dtype=self.dtype, name="linear1")(x))
        return Linear(channels, dtype=self.dtype, name="linear2")(x)


class PatchEmbed(nn.Module):
    """The patch embedding of images, with spatial and temporal positions.

    Attributes:
      embed_dim: the number of channels.
      grid: the side of the table of spatial positions, in patches.
    """

    embed_dim: int
    grid: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        x = vit.PatchConv(self.embed_dim, dtype=self.dtype, name="proj")(images)
        normal, width = nn.initializers.normal(0.02), self.embed_dim
        spatial = self.param("spatial_pos_embed", normal, (self.grid**2, width))
        temporal = self.param("temporal_pos_embed", normal, (FRAMES, width))
        spatial = resize_bicubic(spatial.reshape(1, self.grid, self.grid, width), x.shape[1:3])
        return x + (spatial + temporal[0]).astype(self.dtype)


class VisualEmbed(nn.Module):
    """The input embedding of the transformer: a patch embedding and a layer norm."""

    embed_dim: int
    grid: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        patch_embed = PatchEmbed(self.embed_dim, self.grid, dtype=self.dtype, name="patch_embed")
        return LayerNorm(self.dtype, EPSILON, name="embeddings_norm")(patch_embed(images))


class UniPerceiverAdapter(ViTAdapter):
    """Uni-Perceiver's image encoder with the adapter of ViT-Adapter (see `ViTAdapter`)."""

    block_kind, block_name = UniPerceiverBlock, "layers_{}"
    epsilon = EPSILON

    def embed(self, images):
        width, grid = self.embed_dim, self.pretrain_grid
        x = VisualEmbed(width, grid, dtype=self.dtype, name="visual_embed")(images)
        x = x.reshape(x.shape[0], -1, width)
        return x, x[:, :0]
