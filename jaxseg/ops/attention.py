"""Scaled dot-product attention: one function, computed as it suits the platform."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FUSED_FROM = (8, 0)  # compute capability of NVIDIA's GPUs
FUSED_TYPES = (jnp.bfloat16, jnp.float16)


def attend(
    query: Float[Array, "b n g d"],
    key: Float[Array, "b m g d"],
    value: Float[Array, "b m g d"],
    bias: Float[Array, "#b #g #n m"] | None = None,
) -> Float[Array, "b n g d"]:
    """Attention of every query to all keys, by `g` heads; the softmax is in float32.

    `bias` is added to the scaled products. Without one, in half precision and on NVIDIA GPUs, it is
    cuDNN's fused kernel, which keeps no array of n × m. With one it is not: the kernel gives the
    gradient of a bias for even lengths only, and the class token of BEiT makes them odd.
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
    """Attention of all tokens to all; `qkv` is queries, keys and values in turn, each by heads."""
    b, n, width = qkv.shape
    query, key, value = jnp.split(qkv.reshape(b, n, 3 * num_heads, -1), 3, axis=2)
    return attend(query, key, value, bias).reshape(b, n, width // 3)


def _has_fused_kernel():
    capability = getattr(jax.devices()[0], "compute_capability", "0.0")
    return jax.default_backend() == "gpu" and tuple(map(int, capability.split("."))) >= FUSED_FROM
