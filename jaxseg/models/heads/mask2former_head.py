"""The head of Mask2Former (arXiv:2112.01527): each query predicts one class and one mask."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxseg.models.heads.mask2former_layers import (
    EPSILON,
    FFN,
    PositionedAttention,
    learned_embedding,
)
from jaxseg.models.heads.pixel_decoder import MSDeformAttnPixelDecoder
from jaxseg.models.heads.sine_positions import sine_positions
from jaxseg.models.layers import DType, LayerNorm, Linear, torch_uniform
from jaxseg.models.remat import remat_block
from jaxseg.ops.resize import resize_bilinear
from pallas_kernels import KernelChoice


@struct.dataclass
class MaskPredictions:
    """The queries' predictions before the first decoder layer and after each layer, in float32.

    The axis of queries comes before rows and columns, unlike the channels of feature maps. Each
    mask is an image of its own, which the loss samples at its own points.

    Attributes:
      class_logits: the class logits of every query; the last class is "no object".
      mask_logits: the mask logits of every query, at the stride of the finest features.
    """

    class_logits: Float[Array, "p b q k1"]
    mask_logits: Float[Array, "p b q h w"]

    def semantic(
        self, hw: Sequence[int] | None = None, dtype: DType = jnp.float32
    ) -> Float[Array, "b h w k"]:
        """Returns the score of every pixel and class from the last prediction.

        Each query adds its mask probability times its class probabilities. The share of "no object"
        is dropped, and the shares of the other classes are not rescaled. The score is a sum over
        queries, so it may exceed 1.

        Args:
          hw: height and width to which the mask logits are resized before the sigmoid; None for
            those of the masks.
          dtype: the type of the factors and of the score.
        """
        classes = nn.softmax(self.class_logits[-1])[..., :-1]
        masks = jnp.moveaxis(self.mask_logits[-1], 1, -1)
        if hw is not None:
            masks = resize_bilinear(masks, hw)
        masks = nn.sigmoid(masks)
        return jnp.einsum(
            "bhwq,bqk->bhwk",
            masks.astype(dtype),
            classes.astype(dtype),
            precision=lax.Precision.HIGHEST,
        )


def blocked_by(mask_logits: Float[Array, "b q h w"], hw: Sequence[int]) -> Bool[Array, "b q n"]:
    """Returns where queries must not attend: outside their own masks.

    A query whose mask is empty at the new size may attend everywhere.

    Args:
      mask_logits: the mask logits of every query.
      hw: height and width of the map that the queries attend to.

    Returns:
      True where attention is blocked, for the `n` cells of the map.
    """
    b, queries, *mask_hw = mask_logits.shape
    masks = lax.stop_gradient(mask_logits).reshape(b * queries, *mask_hw, 1)
    outside = resize_bilinear(masks, hw).reshape(b, queries, -1) < 0
    return outside & ~jnp.all(outside, axis=-1, keepdims=True)


class DecoderLayer(nn.Module):
    """A decoder layer: masked attention to a map, self-attention of the queries, and an FFN.

    Each of the three is a residual branch, followed by a norm.
    """

    num_heads: int
    ffn_dim: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b q c"],
        query_positions: Float[Array, "q c"],
        memory: Float[Array, "b n c"],
        memory_positions: Float[Array, "n c"],
        blocked: Bool[Array, "b q n"],
    ) -> Float[Array, "b q c"]:
        norms = [LayerNorm(self.dtype, EPSILON, name=f"norms_{i}") for i in range(3)]
        cross, own = (
            PositionedAttention(self.num_heads, dtype=self.dtype, name=f"attentions_{i}")
            for i in range(2)
        )
        query = norms[0](cross(query, query_positions, memory, memory_positions, blocked))
        query = norms[1](own(query, query_positions, query, query_positions))
        return norms[2](query + FFN(self.ffn_dim, dtype=self.dtype, name="ffns_0")(query))


class TransformerDecoder(nn.Module):
    """The decoder layers and the norm before every prediction, which `Mask2FormerHead` connects.

    Attributes:
      remat: whether the layers recompute their values in the backward pass.
    """

    num_layers: int
    num_heads: int
    ffn_dim: int
    remat: bool
    dtype: DType = jnp.float32

    def setup(self):
        kind = remat_block(DecoderLayer, "kernels") if self.remat else DecoderLayer
        self.layers = [
            kind(self.num_heads, self.ffn_dim, dtype=self.dtype) for _ in range(self.num_layers)
        ]
        self.post_norm = LayerNorm(self.dtype, EPSILON)


class Mask2FormerHead(nn.Module):
    """A transformer decoder with masked attention to the maps of a pixel decoder.

    The layers attend to one map after the other, from coarse to fine and again from coarse. Each
    query attends within the mask that it predicted before the layer. The defaults are those of the
    narrow heads of the reference. The wide heads have 1024 channels, 32 heads and FFNs of 4096.

    Attributes:
      num_classes: the number of classes, without "no object".
      channels: the width of queries and maps.
      num_points: the number of points of the encoder's deformable attention, per head and level.
      norm_groups: the number of groups of the pixel decoder's group norms.
      full_size_masks: whether mask logits are resized to the image before the sigmoid, as in
        DINOv3's segmentor. The reference of Mask2Former resizes the scores afterwards.
      score_dtype: the type of the factors of the queries' scores, and of their sum. The published
        score of DINOv3 is of bfloat16.
      remat: whether the layers recompute their values in the backward pass, which saves memory in
        training.
    """

    num_classes: int
    channels: int = 256
    num_queries: int = 100
    num_heads: int = 8
    num_points: int = 4
    encoder_layers: int = 6
    encoder_ffn_dim: int = 1024
    decoder_layers: int = 9
    decoder_ffn_dim: int = 2048
    norm_groups: int = 32
    full_size_masks: bool = False
    score_dtype: str = "float32"
    remat: bool = False
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    takes_padding = False

    def semantic(
        self, predictions: MaskPredictions, image_hw: Sequence[int]
    ) -> Float[Array, "b h w k"]:
        """Returns the score of every pixel and class, at the size of the masks or of the image.

        Args:
          predictions: the predictions for images.
          image_hw: height and width of the images.
        """
        hw = image_hw if self.full_size_masks else None
        return predictions.semantic(hw, self.score_dtype).astype(jnp.float32)

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "b _ _ _"]], train: bool) -> MaskPredictions:
        pixel_decoder = MSDeformAttnPixelDecoder(
            self.channels,
            self.encoder_layers,
            self.num_heads,
            self.num_points,
            self.encoder_ffn_dim,
            self.norm_groups,
            self.remat,
            self.kernels,
            self.dtype,
            name="pixel_decoder",
        )
        decoder = TransformerDecoder(
            self.decoder_layers,
            self.num_heads,
            self.decoder_ffn_dim,
            self.remat,
            dtype=self.dtype,
            name="transformer_decoder",
        )
        uniform = torch_uniform(self.channels)
        inits = {"kernel_init": uniform, "bias_init": uniform}
        to_classes = Linear(self.num_classes + 1, **inits, name="cls_embed")  # in float32
        to_mask = [
            Linear(self.channels, **inits, dtype=self.dtype, name=f"mask_embed_{i}")
            for i in (0, 2, 4)
        ]
        mask_features, maps = pixel_decoder(features)

        def predict(query):
            query = decoder.post_norm(query)
            embedding = to_mask[2](nn.relu(to_mask[1](nn.relu(to_mask[0](query)))))
            mask_logits = jnp.einsum(
                "bqc,bhwc->bqhw", embedding, mask_features, preferred_element_type=jnp.float32
            )
            return to_classes(query), mask_logits

        b, width = mask_features.shape[0], self.channels
        levels = learned_embedding(len(maps), width, "level_embed").astype(self.dtype)
        memories = [x.reshape(b, -1, width) + level for x, level in zip(maps, levels, strict=True)]
        sizes = [x.shape[1:3] for x in maps]
        positions = [
            sine_positions(hw, width).reshape(-1, width).astype(self.dtype) for hw in sizes
        ]
        query_positions = learned_embedding(self.num_queries, width, "query_embed").astype(
            self.dtype
        )
        query = learned_embedding(self.num_queries, width, "query_feat").astype(self.dtype)
        query = jnp.broadcast_to(query, (b, *query.shape))

        predictions = [predict(query)]
        for i, layer in enumerate(decoder.layers):
            level = i % len(maps)
            blocked = blocked_by(predictions[-1][1], sizes[level])
            query = layer(query, query_positions, memories[level], positions[level], blocked)
            predictions.append(predict(query))
        class_logits, mask_logits = map(jnp.stack, zip(*predictions, strict=True))
        return MaskPredictions(class_logits, mask_logits)
