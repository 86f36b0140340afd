"""SegformerHead as mmsegmentation has it."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.layers import Classifier, ConvBNReLU, DType
from jaxseg.resize import resize_bilinear


class SegformerHead(nn.Module):
    """A 1×1 convolution on every stage, all upsampled to stride 4 and fused by another.

    Unlike the paper (arXiv:2105.15203), every projection has batch norm and ReLU, and the maps are
    concatenated from fine to coarse.
    """

    num_classes: int
    channels: int = 256
    dropout: float = 0.1
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b h w c"]], train: bool
    ) -> Float[Array, "b p q k"]:
        size = features[0].shape[1:3]
        maps = []
        for i, feature in enumerate(features):
            x = ConvBNReLU(self.channels, 1, dtype=self.dtype, name=f"convs_{i}")(feature, train)
            maps.append(resize_bilinear(x, size))
        x = ConvBNReLU(self.channels, 1, dtype=self.dtype, name="fusion_conv")(
            jnp.concatenate(maps, axis=-1), train
        )
        return Classifier(self.num_classes, self.dropout, dtype=self.dtype, name="conv_seg")(
            x, train
        )
