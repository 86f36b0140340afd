"""Matrix products with gradients of their own, against the plain product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import linear


@pytest.mark.parametrize("form", ["cpu", "default"])
def test_gradients_are_those_of_the_plain_product_in_the_form_of_every_platform(form, monkeypatch):
    random = np.random.default_rng(0)
    x, kernel, cotangent = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((2, 5, 7, 4), (4, 6), (2, 5, 7, 6))
    )
    monkeypatch.setattr(
        linear.lax, "platform_dependent", lambda *arguments, **forms: forms[form](*arguments)
    )
    expected, plain = jax.vjp(jnp.matmul, x, kernel)
    found, transpose = jax.vjp(linear.matmul, x, kernel)
    np.testing.assert_array_equal(found, expected)
    for own, wanted in zip(transpose(cotangent), plain(cotangent), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=2e-5)
