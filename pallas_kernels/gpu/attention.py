"""Attention on NVIDIA GPUs, with cuDNN's fused kernel, which stores no array of queries × keys.

The biases of all pairs are such an array. BEiT's are the same for all images, and stored once. With
a bias, cuDNN computes gradients for even numbers of tokens only. BEiT's class token makes the
number odd, so tokens are added that nothing attends to.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.choice import platform
from pallas_kernels.relative_positions import bias_of_pairs
from pallas_kernels.xla_attention import merge_heads, split_heads

LOWEST_CAPABILITY = (8, 0)  # of the GPUs that run the kernel
MULTIPLE = 8  # of the number of tokens, with a bias
# The bias of a token that nothing attends to. cuDNN subtracts biases, so they must stay finite.
LOW = -1e9


def supports(dtype: jnp.dtype) -> bool:
    """Returns whether the kernel takes arrays of a type on the GPUs of this machine.

    It is not used for GPUs that are absent: a program with it is made by cuDNN's library.
    """
    if dtype not in (jnp.bfloat16, jnp.float16):
        return False
    if not platform() == jax.default_backend() == "gpu":
        return False
    capability = jax.devices()[0].compute_capability
    return tuple(map(int, capability.split("."))) >= LOWEST_CAPABILITY


def attend(
    query: Float[Array, "b n g d"],
    key: Float[Array, "b m g d"],
    value: Float[Array, "b m g d"],
    bias: Float[Array, "#b #g #n m"] | None = None,
) -> Float[Array, "b n g d"]:
    """Computes attention of every query to all keys; sums are in float32."""
    return jax.nn.dot_product_attention(query, key, value, bias=bias, implementation="cudnn")


def self_attention(
    qkv: Float[Array, "b n d"],
    table: Float[Array, "rows g"] | None = None,
    *,
    num_heads: int,
    grid: tuple[int, int] | None = None,
) -> Float[Array, "b n e"]:
    """Computes `reference.self_attention` with cuDNN's kernel."""
    if table is None:
        return merge_heads(attend(*split_heads(qkv, num_heads)))
    tokens = qkv.shape[1]
    more = (0, -tokens % MULTIPLE)
    bias = bias_of_pairs(table, grid)[None].astype(qkv.dtype)
    bias = jnp.pad(bias, ((0, 0), (0, 0), more, (0, 0)))
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), more), constant_values=LOW)
    qkv = jnp.pad(qkv, ((0, 0), more, (0, 0)))
    return merge_heads(attend(*split_heads(qkv, num_heads), bias))[:, :tokens]
