"""The SegFormer head as implemented in mmsegmentation."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.layers import Classifier, ConvBNReLU, DType


class SegformerHead(nn.Module):
    """The SegFormer head: a 1×1 convolution per stage, and another one that fuses them at stride 4.

    Unlike in the paper (arXiv:2105.15203), every projection has batch norm and ReLU, and the maps
    are concatenated from fine to coarse.
    """

    num_classes: int
    channels: int = 256
    dropout: float = 0.1
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b p q k"]:
        maps = [
            ConvBNReLU(self.channels, 1, dtype=self.dtype, name=f"convs_{i}")(x, train=train)
            for i, x in enumerate(features)
        ]
        x = ConvBNReLU(self.channels, 1, dtype=self.dtype, name="fusion_conv")(*maps, train=train)
        return Classifier(self.num_classes, self.dropout, dtype=self.dtype, name="conv_seg")(
            x, train
        )
