"""The SegFormer head as implemented in mmsegmentation."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.layers import Classifier, ConvBNReLU, DType
from jaxseg.ops.padding import Sizes, sizes_at_stride


class SegformerHead(nn.Module):
    """The SegFormer head: a 1×1 convolution per stage, and another one that fuses them at stride 4.

    Unlike in the paper (arXiv:2105.15203), every projection has batch norm and ReLU, and the maps
    are concatenated from fine to coarse.
    """

    num_classes: int
    channels: int = 256
    dropout: float = 0.1
    dtype: DType = jnp.float32

    takes_padding = True

    @nn.compact
    def __call__(
        self,
        features: Sequence[Float[Array, "b _ _ _"]],
        train: bool,
        image_sizes: Sizes | None = None,
    ) -> Float[Array, "b p q k"]:
        maps = [
            ConvBNReLU(self.channels, 1, dtype=self.dtype, name=f"convs_{i}")(x, train=train)
            for i, x in enumerate(features)
        ]
        sizes = [sizes_at_stride(image_sizes, 4 * 2**i) for i in range(len(features))]
        x = ConvBNReLU(self.channels, 1, dtype=self.dtype, name="fusion_conv")(
            *maps, train=train, sizes=sizes
        )
        return Classifier(self.num_classes, self.dropout, dtype=self.dtype, name="conv_seg")(
            x, train
        )
