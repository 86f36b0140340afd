"""The softmax equals JAX's, and its gradient needs no exponentials."""

import jax
import numpy as np
import pytest

from jaxseg.ops.softmax import softmax


@pytest.mark.parametrize("axis", [-1, 1])
def test_values_and_gradients_are_those_of_jax(axis):
    random = np.random.default_rng(0)
    x, cotangent = random.standard_normal((2, 3, 12, 5)).astype(np.float32)
    found, transpose = jax.vjp(lambda x: softmax(10 * x, axis), x)
    wanted, transpose_of_jax = jax.vjp(lambda x: jax.nn.softmax(10 * x, axis), x)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(*(t(cotangent)[0] for t in (transpose, transpose_of_jax)), atol=5e-6)


def test_a_recomputed_block_keeps_the_result():
    x = np.zeros((4, 8), np.float32)

    def exponentials(policy):
        block = jax.checkpoint(lambda x: softmax(x, -1).sum(), policy=policy)
        return str(jax.make_jaxpr(jax.grad(block))(x)).count(" exp ")

    policies = jax.checkpoint_policies
    assert exponentials(policies.save_only_these_names("slow_value")) == 1
    assert exponentials(policies.nothing_saveable) == 2
