"""Attention by XLA, which stores the logits of all pairs of a query and a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.relative_positions import bias_of_pairs


def attend(
    query: Float[Array, "b n g d"],
    key: Float[Array, "b m g d"],
    value: Float[Array, "b m g d"],
    bias: Float[Array, "#b #g #n m"] | None = None,
) -> Float[Array, "b n g d"]:
    """Computes attention, with a bias of every pair or none; logits are in float32."""
    query = query * query.shape[-1] ** -0.5
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    logits = jnp.einsum("bgnd,bgmd->bgnm", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias.astype(logits.dtype)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bgnm,bgmd->bgnd", weights, value).swapaxes(1, 2)


def self_attention(
    qkv: Float[Array, "b n d"],
    table: Float[Array, "rows g"] | None = None,
    *,
    num_heads: int,
    grid: tuple[int, int] | None = None,
) -> Float[Array, "b n e"]:
    """Computes `reference.self_attention` with XLA's operations."""
    bias = None if table is None else bias_of_pairs(table, grid)[None].astype(qkv.dtype)
    return merge_heads(attend(*split_heads(qkv, num_heads), bias))


def split_heads(qkv: Float[Array, "b n d"], num_heads: int) -> list[Float[Array, "b n g e"]]:
    """Returns the queries, keys and values of every head from their packed projections."""
    b, n, _ = qkv.shape
    return jnp.split(qkv.reshape(b, n, 3 * num_heads, -1), 3, axis=2)


def merge_heads(x: Float[Array, "b n g d"]) -> Float[Array, "b n e"]:
    """Concatenates the vectors of all heads."""
    return x.reshape(*x.shape[:2], -1)
