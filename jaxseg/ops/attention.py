"""Scaled dot-product attention with an optional mask, for the platform."""

from jaxtyping import Array, Float

from pallas_kernels import xla_attention
from pallas_kernels.gpu import attention as gpu_attention


def attend(
    query: Float[Array, "b n g d"],
    key: Float[Array, "b m g d"],
    value: Float[Array, "b m g d"],
    bias: Float[Array, "#b #g #n m"] | None = None,
) -> Float[Array, "b n g d"]:
    """Computes attention of every query to all keys, with `g` heads and a softmax in float32.

    Without a bias, in half precision and on NVIDIA GPUs, it runs cuDNN's fused kernel. This kernel
    stores no array of n × m.

    Args:
      query: one vector of size `d` per token and head.
      key: the same for the tokens that are attended to.
      value: the vectors that are averaged.
      bias: values added to the scaled products before the softmax, or None.
    """
    if bias is None and gpu_attention.cudnn_supports(query.dtype):
        return gpu_attention.attend(query, key, value)
    return xla_attention.attend(query, key, value, bias)
