"""BEiT without a companion: what its four features are made of. (Its blocks have recordings.)"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.backbones import beit
from support.reference_files import relative_error

TINY = beit.BEiT(embed_dim=8, depth=5, num_heads=2, out_indices=(0, 2, 3, 4), window=(4, 4))
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)


def is_block(module, _):
    return (module.name or "").startswith("blocks_")


@functools.cache
def variables():
    """Fresh ones, with layer scales that let the blocks do something."""
    model = TINY.clone(layer_scale=0.5)
    return jax.jit(model.init)(jax.random.key(0), IMAGES)


def transposed(x, weights):
    """A convolution of 2 × 2 with stride 2, transposed: every value becomes a square of four."""
    b, h, w, _ = x.shape
    squares = np.einsum("bhwc,yxdc->bhywxd", x, weights["kernel"])
    return squares.reshape(b, 2 * h, 2 * w, -1) + weights["bias"]


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


@pytest.mark.parametrize("train", [False, True])
def test_features_are_the_maps_after_four_blocks_enlarged_and_halved(train):
    collections = ["batch_stats", "intermediates"]
    apply = functools.partial(TINY.apply, capture_intermediates=is_block, mutable=collections)
    features, updated = jax.jit(apply, static_argnums=2)(variables(), IMAGES, train)
    x4, x8, x16, x32 = (
        np.asarray(updated["intermediates"][f"blocks_{i}"]["__call__"][0], np.float64)[:, 1:]
        for i in TINY.out_indices
    )
    x4, x8, x16, x32 = (x.reshape(2, 4, 6, 8) for x in (x4, x8, x16, x32))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables()["params"])

    x4 = transposed(x4, params["fpn1_0"])
    mean, var = (x4.mean((0, 1, 2)), x4.var((0, 1, 2))) if train else (0.0, 1.0)
    count = x4.size // 8
    x4 = (x4 - mean) / np.sqrt(var + 1e-5)  # a fresh batch norm scales by 1 and adds 0
    x4 = transposed(gelu(x4), params["fpn1_3"])
    x8 = transposed(x8, params["fpn2_0"])
    x32 = x32.reshape(2, 2, 2, 3, 2, 8).max(axis=(2, 4))
    for ours, expected in zip(features, (x4, x8, x16, x32), strict=True):
        assert relative_error(ours, expected) < 1e-5

    running = updated["batch_stats"]["fpn1_1"]
    unbiased = var * count / (count - 1) if train else 1.0
    assert relative_error(running["mean"] + 1, np.full(8, 0.1 * mean + 1)) < 1e-5
    assert relative_error(running["var"], np.full(8, 0.9 + 0.1 * unbiased)) < 1e-5


def test_features_have_the_strides_of_a_pyramid_at_any_size():
    for hw in ((64, 64), (32, 160)):
        images = jax.ShapeDtypeStruct((1, *hw, 3), jnp.float32)
        features = jax.eval_shape(TINY.apply, variables(), images)
        sizes = [(1, hw[0] // stride, hw[1] // stride, 8) for stride in (4, 8, 16, 32)]
        assert [x.shape for x in features] == sizes


def test_rematerialized_blocks_have_the_same_gradients():
    def gradient(model):
        def loss(params):
            features = model.apply(variables() | {"params": params}, IMAGES)
            return sum(jnp.mean(x**2) for x in features)

        return jax.jit(jax.grad(loss))(variables()["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        gradient(TINY),
        gradient(TINY.clone(remat=True)),
    )


def test_sides_that_are_no_multiples_of_the_coarsest_stride_are_refused():
    images = jax.ShapeDtypeStruct((1, 64, 80, 3), jnp.float32)
    with pytest.raises(
        ValueError, match="BEiT: an image of 64 x 80; both sides have to be multiples of 32"
    ):
        jax.eval_shape(TINY.apply, variables(), images)


@pytest.mark.parametrize("indices", [(0, 1, 2), (0, 1, 2, 5), (1, 0, 2, 3)])
def test_features_of_blocks_that_do_not_make_a_pyramid_are_refused(indices):
    model = TINY.clone(out_indices=indices)
    with pytest.raises(ValueError, match="four ascending block indices below depth=5"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
