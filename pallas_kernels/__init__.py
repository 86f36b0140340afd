"""Deformable sampling for JAX: one public function an operator, one file an implementation.

Nothing here needs a compiler on the user's side. `reference` holds the definition; the other
implementations are optimizations with the same values and gradients for any offset.
"""

from pallas_kernels.choice import KernelChoice, platform
from pallas_kernels.dispatch import IMPLEMENTATIONS, dcnv3, dcnv3_group_multiple, ms_deform_attn

__all__ = [
    "IMPLEMENTATIONS",
    "KernelChoice",
    "dcnv3",
    "dcnv3_group_multiple",
    "ms_deform_attn",
    "platform",
]
