"""Layer normalization equals its definition, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.normalization import layer_norm

EPSILON = 1e-6


def by_definition(x, scale, bias):
    wide = x.astype(np.float64)
    mean, variance = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    return (wide - mean) / np.sqrt(variance + EPSILON) * scale + bias


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_values_and_gradients_are_those_of_the_definition(offset):
    random = np.random.default_rng(0)
    x = (random.standard_normal((2, 3, 5, 16)) + offset).astype(np.float32)
    scale, bias, *_ = random.standard_normal((2, 16)).astype(np.float32)
    cotangent = random.standard_normal(x.shape).astype(np.float32)
    arguments = map(jnp.asarray, (x, scale, bias))
    y, transpose = jax.vjp(lambda *a: layer_norm(*a, EPSILON, jnp.float32), *arguments)
    # In float32, a mean of 100 is known to 2^-24 · 100 = 6e-6.
    np.testing.assert_allclose(y, by_definition(x, scale, bias), atol=2e-6 + 5e-7 * offset)
    with jax.enable_x64(True):
        wide = [a.astype(np.float64) for a in (x, scale, bias)]

        def plain(x, scale, bias):
            mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            normalized = (x - mean) / jnp.sqrt(variance + EPSILON)
            return normalized * scale[None, None, None] + bias[None, None, None]

        wanted = jax.vjp(plain, *wide)[1](cotangent.astype(np.float64))
    for found, value in zip(transpose(cotangent), wanted, strict=True):
        np.testing.assert_allclose(found, value, atol=5e-6 + 1e-6 * offset)


def test_half_precision_is_normalized_in_float32():
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    scale, bias = jnp.ones(64), jnp.zeros(64)
    half = jnp.asarray(x, jnp.bfloat16)
    y, transpose = jax.vjp(lambda x: layer_norm(x, scale, bias, EPSILON, jnp.bfloat16), half)
    assert y.dtype == transpose(y)[0].dtype == jnp.bfloat16
    wanted = layer_norm(half.astype(jnp.float32), scale, bias, EPSILON, jnp.float32)
    np.testing.assert_array_equal(y, wanted.astype(jnp.bfloat16))
