"""Convolutions in the forms that a TPU runs, against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import convolution


@pytest.mark.parametrize("shape", [(2, 8, 12, 3, 5), (2, 7, 9, 4, 6), (1, 1, 2, 3, 3)])
def test_stride_2_by_products_is_the_convolution(shape):
    batch, height, width, channels, features = shape
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(batch, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, channels, features)), jnp.float32)
    expected, transpose = jax.vjp(convolution._stride2, x, kernel)
    found, own_transpose = jax.vjp(convolution._stride2_by_products, x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.asarray(random.normal(size=expected.shape), jnp.float32)
    for own, wanted in zip(own_transpose(cotangent), transpose(cotangent), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=1e-5)
