"""Scaled dot-product attention, with the implementation chosen for the platform."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FUSED_FROM = (8, 0)  # lowest compute capability of NVIDIA GPUs that run the fused kernel
FUSED_TYPES = (jnp.bfloat16, jnp.float16)


def attend(
    query: Float[Array, "b n g d"],
    key: Float[Array, "b m g d"],
    value: Float[Array, "b m g d"],
    bias: Float[Array, "#b #g #n m"] | None = None,
) -> Float[Array, "b n g d"]:
    """Computes attention of every query to all keys, with `g` heads and a softmax in float32.

    Without a bias, in half precision and on NVIDIA GPUs, it runs cuDNN's fused kernel. This kernel
    stores no array of n × m. It is not used with a bias: it computes the gradient of a bias only
    for even lengths, and the class token of BEiT makes the lengths odd.

    Args:
      query: one vector of size `d` per token and head.
      key: the same for the tokens that are attended to.
      value: the vectors that are averaged.
      bias: values added to the scaled products before the softmax, or None.
    """
    if bias is None and query.dtype in FUSED_TYPES and _has_fused_kernel():
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    query = query * query.shape[-1] ** -0.5
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    logits = jnp.einsum("bgnd,bgmd->bgnm", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias.astype(logits.dtype)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bgnm,bgmd->bgnd", weights, value).swapaxes(1, 2)


def self_attend(
    qkv: Float[Array, "b n d"], num_heads: int, bias: Float[Array, "#b #g n n"] | None = None
) -> Float[Array, "b n e"]:
    """Computes attention of all tokens to all tokens from their packed projections.

    Args:
      qkv: queries, keys and values, concatenated; each of them head after head.
      num_heads: the number of heads.
      bias: values added to the scaled products before the softmax, or None.

    Returns:
      The attended values, head after head, a third as wide as `qkv`.
    """
    b, n, width = qkv.shape
    query, key, value = jnp.split(qkv.reshape(b, n, 3 * num_heads, -1), 3, axis=2)
    return attend(query, key, value, bias).reshape(b, n, width // 3)


def _has_fused_kernel():
    capability = getattr(jax.devices()[0], "compute_capability", "0.0")
    return jax.default_backend() == "gpu" and tuple(map(int, capability.split("."))) >= FUSED_FROM
