"""The path for TPUs: no gathers, but sums over the pixels that sampling points may touch."""

from pallas_kernels.tpu.dcnv3 import dcnv3
from pallas_kernels.tpu.ms_deform_attn import ms_deform_attn

__all__ = ["dcnv3", "ms_deform_attn"]
