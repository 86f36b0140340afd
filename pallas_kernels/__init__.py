"""Deformable sampling, attention and a convolution for JAX, each with several implementations.

Every operator is one public function, and every implementation has its own module or folder. No
compiler is needed on the user's machine. `reference` defines the operators. The other
implementations are optimizations: they give the same values and gradients for any offset.
"""

from pallas_kernels.choice import KernelChoice, platform
from pallas_kernels.dispatch import (
    IMPLEMENTATIONS,
    GroupOrder,
    conv3x3,
    conv3x3_has_kernel,
    dcnv3,
    dcnv3_group_order,
    ms_deform_attn,
    ms_deform_attn_takes_tokens_last,
    self_attention,
)

__all__ = [
    "IMPLEMENTATIONS",
    "GroupOrder",
    "KernelChoice",
    "conv3x3",
    "conv3x3_has_kernel",
    "dcnv3",
    "dcnv3_group_order",
    "ms_deform_attn",
    "ms_deform_attn_takes_tokens_last",
    "platform",
    "self_attention",
]
