"""A linear classifier on the feature maps, to test a backbone or to train little."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.layers import BatchNorm, Classifier, DType
from jaxseg.ops.resize import resize_bilinear


class LinearHead(nn.Module):
    """The linear head of DINOv2 and DINOv3: channel dropout, batch norm and a 1×1 convolution.

    The feature maps are resized to the first one's size and concatenated (arXiv:2304.07193,
    section 7.4).

    Attributes:
      in_index: the indices of the feature maps.
    """

    num_classes: int
    in_index: Sequence[int] = (0, 1, 2, 3)
    dropout: float = 0.1
    dtype: DType = jnp.float32

    takes_padding = False

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b p q k"]:
        maps = [features[i].astype(self.dtype) for i in self.in_index]
        x = jnp.concatenate([resize_bilinear(x, maps[0].shape[1:3]) for x in maps], axis=-1)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
        x = BatchNorm(name="bn")(x, train)
        return Classifier(self.num_classes, 0.0, dtype=self.dtype, name="conv_seg")(x, train)
