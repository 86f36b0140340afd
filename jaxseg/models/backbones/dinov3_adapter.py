"""DINOv3 with a ViT-Adapter that only reads from it (arXiv:2508.10104, section 6.3.2).

The transformer runs once and does not see the adapter: there are no injectors. It can therefore be
frozen, and then takes no memory for gradients.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.backbones import vit
from jaxseg.models.backbones.dinov3 import Transformer
from jaxseg.models.backbones.vit_adapter import AdapterEnds, Extractor, extractor_names
from jaxseg.models.deformable_attention import Grid, Pyramid
from jaxseg.models.layers import DType
from pallas_kernels import KernelChoice


class Extraction(nn.Module):
    """An interaction without an injector: one extractor, and extra ones on the same tokens."""

    num_heads: int
    num_points: int = 4
    ratio: float = 0.5
    ffn_ratio: float = 0.25
    drop_path: float = 0.0
    extra_extractors: int = 0
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
        extract = functools.partial(
            Extractor,
            self.num_heads,
            self.num_points,
            self.ratio,
            self.ffn_ratio,
            self.drop_path,
            kernels=self.kernels,
            dtype=self.dtype,
        )
        for name in extractor_names(self.extra_extractors):
            c = extract(name=name)(c, x, hw, pyramid, train)
        return c


class DINOv3Adapter(AdapterEnds, Transformer):
    """A transformer of DINOv3 with its adapter: features at strides 4, 8, 16 and 32.

    Attributes:
      interaction_indexes: the indices of the four blocks after which the adapter reads.
      deform_num_heads: the number of heads of the deformable attention.
      deform_ratio: the width of its values as a share of `embed_dim`.
      drop_path: the drop path rate of the extractors.
      conv_inplane: the number of channels of the adapter's first layers.
      num_points: the number of points of the deformable attention, per head and level.
      conv_ffn_ratio: the hidden width of the extractors' FFNs as a share of `embed_dim`.
      extra_extractors: the number of further extractors that read the last tokens.
      add_vit_feature: whether the ViT's maps are added to the features.

    Raises:
      ValueError: if a side of the images is not a multiple of 32.
    """

    interaction_indexes: Sequence[int] = ()
    deform_num_heads: int = 16
    deform_ratio: float = 0.5
    drop_path: float = 0.3
    conv_inplane: int = 64
    num_points: int = 4
    conv_ffn_ratio: float = 0.25
    extra_extractors: int = 2
    add_vit_feature: bool = True

    side_multiple = vit.STRIDE  # sides of images must be multiples of it

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> list[Float[Array, "b _ _ c"]]:
        h, w = hw = vit.patch_grid(images, "DINOv3 with an adapter")
        pyramid = ((2 * h, 2 * w), hw, (h // 2, w // 2))
        c1, c = self.first_tokens(images, train)
        taken = [x.patches for x in self.intermediate(images, self.interaction_indexes, train)]
        for i, x in enumerate(taken):
            extraction = Extraction(
                self.deform_num_heads,
                self.num_points,
                self.deform_ratio,
                self.conv_ffn_ratio,
                self.drop_path,
                self.extra_extractors if i == len(taken) - 1 else 0,
                self.kernels,
                self.dtype,
                name=f"interactions_{i}",
            )
            tokens = x.reshape(x.shape[0], h * w, -1)
            c = extraction(c, tokens, hw, pyramid, train)
        return self.features(c1, c, pyramid, taken, train)
