"""The operators on TPU: sums over the pixels that sampling points may touch, without gathers."""

from pallas_kernels.tpu.dcnv3 import dcnv3
from pallas_kernels.tpu.ms_deform_attn import ms_deform_attn

__all__ = ["dcnv3", "ms_deform_attn"]
