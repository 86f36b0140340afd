"""Mask2Former (arXiv:2112.01527): queries that become one class and one mask each."""

from collections.abc import Sequence

import flax
import jax.numpy as jnp
from flax import linen as nn
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
from jaxseg.models.layers import DType, Linear, layer_norm, torch_uniform
from jaxseg.ops.resize import resize_bilinear
from pallas_kernels import KernelChoice


@flax.struct.dataclass
class MaskPredictions:
    """What the queries say before the first layer of the decoder and after each, in float32.

    Unlike the channels of maps, the queries stand before rows and columns: each mask is an image of
    its own, which losses sample at points of its own.

    Attributes:
      class_logits: scores of the classes, and of "no object" as the last.
      mask_logits: scores of every pixel, at the stride of the finest features.
    """

    class_logits: Float[Array, "p b q k1"]
    mask_logits: Float[Array, "p b q h w"]

    def semantic(self) -> Float[Array, "b h w k"]:
        """The last prediction as a score for every pixel and class.

        A query gives its mask to its classes; what it gives to "no object" is lost, the shares of
        the others do not grow to make up for it. A sum over queries, so it may exceed 1.
        """
        classes = nn.softmax(self.class_logits[-1])[..., :-1]
        masks = nn.sigmoid(self.mask_logits[-1])
        return jnp.einsum("bqhw,bqk->bhwk", masks, classes, precision=lax.Precision.HIGHEST)


def blocked_by(mask_logits: Float[Array, "b q h w"], hw: Sequence[int]) -> Bool[Array, "b q n"]:
    """Where in a map of another size queries must not look: outside their own masks.

    A query whose mask is empty there may look everywhere.
    """
    b, queries, *mask_hw = mask_logits.shape
    masks = lax.stop_gradient(mask_logits).reshape(b * queries, *mask_hw, 1)
    outside = resize_bilinear(masks, hw).reshape(b, queries, -1) < 0
    return outside & ~jnp.all(outside, axis=-1, keepdims=True)


class DecoderLayer(nn.Module):
    """The queries look at a map, then at each other, then each goes through an FFN by itself.

    Every step is followed by a norm.
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
        norms = [layer_norm(f"norms_{i}", self.dtype, EPSILON) for i in range(3)]
        cross, own = (
            PositionedAttention(self.num_heads, dtype=self.dtype, name=f"attentions_{i}")
            for i in range(2)
        )
        query = norms[0](cross(query, query_positions, memory, memory_positions, blocked))
        query = norms[1](own(query, query_positions, query, query_positions))
        return norms[2](query + FFN(self.ffn_dim, dtype=self.dtype, name="ffns_0")(query))


class TransformerDecoder(nn.Module):
    """The layers, and the norm before every prediction; what lies between them is the head's."""

    num_layers: int
    num_heads: int
    ffn_dim: int
    remat: bool
    dtype: DType = jnp.float32

    def setup(self):
        kind = nn.remat(DecoderLayer) if self.remat else DecoderLayer
        self.layers = [
            kind(self.num_heads, self.ffn_dim, dtype=self.dtype) for _ in range(self.num_layers)
        ]
        self.post_norm = layer_norm(dtype=self.dtype, epsilon=EPSILON)


class Mask2FormerHead(nn.Module):
    """A transformer decoder with masked attention, on the maps of a pixel decoder.

    Layer after layer attends to one of the maps, from coarse to fine and again from coarse, each
    query within the mask that it predicted before the layer. The options are those of the narrow
    heads of the reference; the wide ones have 1024 channels, 32 heads and FFNs of 4096.

    remat: less memory in training, since what lies within the layers is computed twice.
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
    remat: bool = False
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "b h w c"]], train: bool) -> MaskPredictions:
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
