"""What operators on maps move on a GPU, by its compiler, and the forms that they have there."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import convolution, normalization, resize, sums
from support.runs import CUDA, NEEDS_CUDA, ROOT, run

# Passes over a map, forward and backward. In one form for all platforms, these were 11.5, 53.6,
# 26.4 and 12.0 (jax 0.10.2).
MOST = {
    "resize": 5,
    "resized_convolution": 40,
    "depthwise_convolution": 8,
    "layer_norm": 9,
}


@NEEDS_CUDA
def test_maps_are_neither_transposed_nor_read_more_often_than_needed():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "PYTHONPATH": f"{ROOT}:{CUDA}",
        "XLA_FLAGS": "",
    }
    program = ROOT / "tests/support/traffic_of_gpu.py"
    printed = run({"args": [sys.executable, program], "env": environment, "text": True})
    found = json.loads(printed.splitlines()[-1])
    assert found.keys() == MOST.keys()
    for name, (passes, copied) in found.items():
        assert passes < MOST[name], name
        # Only the weights of the convolution are copied, into the order of its products.
        assert copied == 0 or (name == "resized_convolution" and copied < 4)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("hw", [(8, 12), (7, 3)])
def test_resizing_has_the_same_values_in_all_forms(platform, hw, monkeypatch):
    monkeypatch.setattr(resize, "platform", lambda: platform)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 4, 6, 5)), jnp.float32)
    cotangent = jnp.asarray(random.standard_normal((2, *hw, 5)), jnp.float32)
    found, transpose = jax.vjp(lambda x: resize.resize_bilinear(x, hw), x)
    rows, columns = map(resize.interpolation_matrix, (4, 6), hw)
    wanted = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, np.asarray(x, np.float64))
    gradient = np.einsum("Hh,Ww,bHWc->bhwc", rows, columns, np.asarray(cotangent, np.float64))
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(transpose(cotangent)[0], gradient, atol=2e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_convolution_of_a_resized_map_is_both_operations(platform, padded, monkeypatch):
    monkeypatch.setattr(convolution, "platform", lambda: platform)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 3, 5, 4)), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((3, 3, 4, 7)), jnp.float32)
    hw = (6, 10)
    cotangent = jnp.asarray(random.standard_normal((2, *hw, 7)), jnp.float32)
    sizes = (jnp.array([[3, 5]] * 2), jnp.array([hw] * 2)) if padded else ()
    found, transpose = jax.vjp(
        lambda *xs: convolution.conv3x3_of_resized(*xs, hw, *sizes), x, kernel
    )
    wanted, plain = jax.vjp(
        lambda x, kernel: convolution.conv3x3(resize.resize_bilinear(x, hw), kernel), x, kernel
    )
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    for own, expected in zip(transpose(cotangent), plain(cotangent), strict=True):
        np.testing.assert_allclose(own, expected, atol=5e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_gradient_of_a_norm_over_maps_has_the_same_sums_in_all_forms(platform, monkeypatch):
    monkeypatch.setattr(sums, "platform", lambda: platform)
    random = np.random.default_rng(0)
    maps, scale, bias = random.standard_normal((2, 3, 5, 8)), np.ones(8), np.zeros(8)
    maps, scale, bias = (jnp.asarray(x, jnp.float32) for x in (maps, scale, bias))

    def gradient(x):
        _, transpose = jax.vjp(
            lambda *xs: normalization.layer_norm(*xs, 1e-6, jnp.float32), x, scale, bias
        )
        return transpose(x)

    found, wanted = gradient(maps), gradient(maps.reshape(6, 5, 8))
    for own, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(own.reshape(expected.shape), expected, atol=1e-5)
