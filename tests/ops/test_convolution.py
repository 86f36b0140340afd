"""Convolutions in the forms that a TPU or a GPU runs, against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import convolution
from jaxseg.ops.layout import free_layouts
from support.absent_tpu import absent_tpu


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 8, 12, 3, 5), (2, 7, 9, 4, 6), (1, 1, 2, 3, 3)])
def test_the_convolution_by_products_is_the_convolution(shape, stride):
    plain, by_products = {
        1: (convolution._stride1, convolution._stride1_by_product),
        2: (convolution._stride2, convolution._stride2_by_products),
    }[stride]
    batch, height, width, channels, features = shape
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(batch, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, channels, features)), jnp.float32)
    expected, transpose = jax.vjp(plain, x, kernel)
    found, own_transpose = jax.vjp(by_products, x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.asarray(random.normal(size=expected.shape), jnp.float32)
    for own, wanted in zip(own_transpose(cotangent), transpose(cotangent), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", [convolution.conv3x3, convolution.conv3x3_stride2])
@pytest.mark.parametrize(("width", "channels", "by_products"), [(256, 3, True), (8, 64, False)])
def test_a_tpu_runs_products_for_few_channels(operation, width, channels, by_products):
    def is_convolution():
        x, kernel = jnp.zeros((1, 4, width, channels)), jnp.zeros((3, 3, channels, 2))
        # A function of its own each time, because JAX keeps what it has traced.
        return "conv_general_dilated" in str(jax.make_jaxpr(lambda *xs: operation(*xs))(x, kernel))

    with absent_tpu():
        assert is_convolution() != by_products
        with free_layouts():
            assert is_convolution()
    assert is_convolution()


def test_exported_convolutions_do_not_depend_on_the_platform():
    """ONNX has no choice by platform."""
    x, kernel = jnp.zeros((1, 4, 256, 3)), jnp.zeros((3, 3, 3, 2))
    assert "platform_index" not in str(jax.make_jaxpr(convolution.conv3x3_stride2)(x, kernel))


@jax.numpy_rank_promotion("allow")
@pytest.mark.parametrize("operation", ["depthwise_conv", "conv3x3"])
@pytest.mark.parametrize("form", ["tpu", "default"])
def test_gradients_in_other_forms_are_those_of_this_machine(operation, form, monkeypatch):
    random = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(random.normal(size=(2, 7, 9, 5)), jnp.float32) for _ in range(2))
    shape = (3, 3, 1 if operation == "depthwise_conv" else 5, 5)
    kernel = jnp.asarray(random.normal(size=shape), jnp.float32)
    _, transpose = jax.vjp(getattr(convolution, operation), x, kernel)
    expected = transpose(cotangent)

    def of_form(*arguments, **forms):
        return forms[form](*arguments)

    monkeypatch.setattr(convolution.lax, "platform_dependent", of_form)
    _, transpose = jax.vjp(getattr(convolution, operation), x, kernel)
    for found, wanted in zip(transpose(cotangent), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)
