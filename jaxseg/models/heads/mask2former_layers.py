"""The layers of Mask2Former's encoder and decoder, as in DETR (arXiv:2005.12872)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxseg.models.layers import DType, Linear, kernel_param, torch_uniform
from jaxseg.ops.attention import attend
from jaxseg.ops.linear import matmul
from jaxseg.ops.slow_values import name_slow_value

EPSILON = 1e-5  # of all norms in Mask2Former
XAVIER_NORMAL = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def learned_embedding(rows: int, width: int, name: str) -> Float[Array, "n c"]:
    """Creates a table of learned vectors and returns it.

    Args:
      rows: the number of vectors.
      width: the length of a vector.
      name: the name of the table.
    """
    return nn.Embed(rows, width, embedding_init=nn.initializers.normal(1.0), name=name).embedding


class PackedLinear(nn.Module):
    """The linear layers of queries, keys and values, which share one matrix."""

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b n c"],
        key: Float[Array, "b m c"],
        value: Float[Array, "b m c"],
    ) -> list[Float[Array, "b _ c"]]:
        channels = query.shape[-1]
        kernel = kernel_param(self, XAVIER_NORMAL, (channels, 3 * channels))
        bias = self.param("bias", nn.initializers.zeros, (3 * channels,)).astype(self.dtype)
        kernels, biases = (jnp.split(x, 3, axis=-1) for x in (kernel, bias))
        return [
            name_slow_value(matmul(x.astype(self.dtype), kernel) + bias)
            for x, kernel, bias in zip((query, key, value), kernels, biases, strict=True)
        ]


class MultiheadAttention(nn.Module):
    """Multi-head attention between linear layers, which ignores keys where `blocked` is true."""

    num_heads: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b n c"],
        key: Float[Array, "b m c"],
        value: Float[Array, "b m c"],
        blocked: Bool[Array, "b n m"] | None,
    ) -> Float[Array, "b n c"]:
        parts = PackedLinear(dtype=self.dtype, name="in_proj")(query, key, value)
        by_heads = [x.reshape(*x.shape[:2], self.num_heads, -1) for x in parts]
        bias = None if blocked is None else jnp.where(blocked[:, None], -jnp.inf, 0.0)
        mixed = attend(*by_heads, bias).reshape(query.shape)
        return Linear(
            query.shape[-1], kernel_init=XAVIER_NORMAL, dtype=self.dtype, name="out_proj"
        )(mixed)


class PositionedAttention(nn.Module):
    """Attention in a residual branch, with positions added to queries and keys but not values."""

    num_heads: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b n c"],
        query_positions: Float[Array, "n c"],
        memory: Float[Array, "b m c"],
        memory_positions: Float[Array, "m c"],
        blocked: Bool[Array, "b n m"] | None = None,
    ) -> Float[Array, "b n c"]:
        attention = MultiheadAttention(self.num_heads, dtype=self.dtype, name="attn")
        key = memory + memory_positions
        return query + attention(query + query_positions, key, memory, blocked)


class FFN(nn.Module):
    """Two linear layers with a ReLU between them."""

    hidden_dim: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        def linear(x, features, name):
            bias_init = torch_uniform(x.shape[-1])
            return Linear(
                features,
                kernel_init=XAVIER_NORMAL,
                bias_init=bias_init,
                dtype=self.dtype,
                name=name,
            )(x)

        hidden = nn.relu(linear(x, self.hidden_dim, "layers_0_0"))
        return name_slow_value(linear(hidden, x.shape[-1], "layers_1"))
