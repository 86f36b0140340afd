"""The UPerNet head (arXiv:1807.10221) and the auxiliary FCN head that is trained with it."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.layers import Classifier, ConvBNReLU, DType
from jaxseg.ops.convolution import adaptive_avg_pool
from jaxseg.ops.padding import Sizes, sizes_at_stride
from jaxseg.ops.resize import resize_bilinear
from pallas_kernels import KernelChoice


class UPerHead(nn.Module):
    """The UPerNet head: pyramid pooling on the coarsest map and a feature pyramid over all maps.

    Its logits have stride 4. Top-down sums are sequential: each level adds the already summed level
    above. The pooled maps are concatenated after the coarsest map. The levels of the pyramid are
    concatenated from fine to coarse.

    Attributes:
      channels: the width of all inner maps.
      pool_scales: the numbers of bins per side of the pyramid pooling.
    """

    num_classes: int
    channels: int = 512
    pool_scales: Sequence[int] = (1, 2, 3, 6)
    dropout: float = 0.1
    dtype: DType = jnp.float32
    kernels: KernelChoice = KernelChoice()

    takes_padding = True

    @nn.compact
    def __call__(
        self,
        features: Sequence[Float[Array, "b _ _ _"]],
        train: bool,
        image_sizes: Sizes | None = None,
    ) -> Float[Array, "b p q k"]:
        def conv_bn_relu(name, kernel_size):
            return ConvBNReLU(self.channels, kernel_size, self.dtype, self.kernels, name=name)

        *finer, coarsest = features
        sizes = [sizes_at_stride(image_sizes, 4 * 2**i) for i in range(len(features))]
        pooled = [coarsest]
        for i, scale in enumerate(self.pool_scales):
            x = adaptive_avg_pool(coarsest, scale, sizes[-1])
            pooled.append(conv_bn_relu(f"psp_modules_{i}", 1)(x, train=train))
        pooled_sizes = [sizes[-1]] + [None] * len(self.pool_scales)
        top = conv_bn_relu("bottleneck", 3)(*pooled, train=train, sizes=pooled_sizes)

        sums = [top]
        for i in reversed(range(len(finer))):
            lateral = conv_bn_relu(f"lateral_convs_{i}", 1)(finer[i], train=train)
            above = resize_bilinear(sums[0], lateral.shape[1:3], sizes[i + 1], sizes[i])
            sums.insert(0, lateral + above)

        pyramid = [
            conv_bn_relu(f"fpn_convs_{i}", 3)(x, train=train, sizes=sizes[i : i + 1])
            for i, x in enumerate(sums[:-1])
        ]
        x = conv_bn_relu("fpn_bottleneck", 3)(*pyramid, top, train=train, sizes=sizes)
        return Classifier(self.num_classes, self.dropout, dtype=self.dtype, name="conv_seg")(
            x, train
        )


class FCNHead(nn.Module):
    """An auxiliary head for training: a 3×3 convolution and a classifier on one feature map.

    Attributes:
      in_index: the index of the feature map.
    """

    num_classes: int
    channels: int = 256
    in_index: int = 2
    dropout: float = 0.1
    dtype: DType = jnp.float32
    kernels: KernelChoice = KernelChoice()

    takes_padding = False

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b p q k"]:
        conv = ConvBNReLU(self.channels, dtype=self.dtype, kernels=self.kernels, name="convs_0")
        x = conv(features[self.in_index], train=train)
        return Classifier(self.num_classes, self.dropout, dtype=self.dtype, name="conv_seg")(
            x, train
        )
