"""Layer normalization and the softmax, with hand-written gradients."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.slow_values import name_slow_value


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: Float[Array, "... c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float,
    dtype: jax.typing.DTypeLike,
) -> Float[Array, "... c"]:
    """Normalizes over the last axis, with statistics in float32 and the biased variance.

    The gradient of JAX follows mean and variance on two ways, and sums over the channels once for
    each. This one has the closed form, whose two sums read their operands once.

    Args:
      x: the values.
      scale: a factor for each channel.
      bias: a summand for each channel.
      epsilon: what is added to the variance.
      dtype: the type of the result.
    """
    return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _layer_norm_forward(x, scale, bias, epsilon, dtype):
    wide = x.astype(jnp.float32)
    mean = name_slow_value(wide.mean(-1, keepdims=True))
    inverse = lax.rsqrt(lax.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    inverse = name_slow_value(inverse)
    factor, summand = (jnp.expand_dims(w, tuple(range(x.ndim - 1))) for w in (scale, bias))
    y = (wide - mean) * (inverse * factor) + summand
    return y.astype(dtype), (x, scale, bias, mean, inverse)


def _layer_norm_backward(_epsilon, _dtype, residuals, cotangent):
    x, scale, bias, mean, inverse = residuals
    cotangent = cotangent.astype(jnp.float32)
    normalized = (x.astype(jnp.float32) - mean) * inverse
    leading = tuple(range(x.ndim - 1))
    scaled = cotangent * jnp.expand_dims(scale, leading)
    shared = scaled.mean(-1, keepdims=True)
    along = (scaled * normalized).mean(-1, keepdims=True)
    gradient = inverse * (scaled - shared - normalized * along)
    scale_gradient = jnp.sum(cotangent * normalized, leading)
    return (
        gradient.astype(x.dtype),
        scale_gradient.astype(scale.dtype),
        jnp.sum(cotangent, leading).astype(bias.dtype),
    )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Computes the softmax over an axis. A recomputed block keeps its output.

    The gradient is computed from the output. That of `jax.nn.softmax` would be too, but from its
    value before it is named, which would be recomputed.
    """
    return jax.nn.softmax(x, axis)


def _softmax_forward(x, axis):
    output = name_slow_value(jax.nn.softmax(x, axis))
    return output, output


def _softmax_backward(axis, output, cotangent):
    return (output * (cotangent - jnp.sum(output * cotangent, axis, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)
