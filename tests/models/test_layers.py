"""Layers in the forms of several platforms."""

import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnxruntime
import pytest

from jaxseg.models.layers import max_pool3x3_stride2
from support.absent_tpu import absent_tpu


def feature_map(hw):
    """As it is after a ReLU."""
    values = np.random.default_rng(0).normal(size=(2, *hw, 3))
    return jnp.maximum(0, jnp.asarray(values, jnp.float32))


@pytest.mark.parametrize("hw", [(8, 12), (7, 9)])
def test_the_pooling_for_a_tpu_is_that_of_this_machine(hw):
    x = feature_map(hw)
    expected, transpose = jax.vjp(lambda x: max_pool3x3_stride2(x), x)
    with absent_tpu():
        found, own_transpose = jax.vjp(lambda x: max_pool3x3_stride2(x), x)
    np.testing.assert_array_equal(found, expected)
    # Where all cells are zero, the gradient may go to any of them: that of the ReLU is zero there.
    (own,), (wanted,) = (pull(jnp.ones_like(expected)) for pull in (own_transpose, transpose))
    np.testing.assert_array_equal(own[x > 0], wanted[x > 0])


def test_the_pooling_runs_in_onnx():
    x = feature_map((7, 9))
    model = jax2onnx.to_onnx(max_pool3x3_stride2, inputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})
    np.testing.assert_array_equal(found, max_pool3x3_stride2(x))
