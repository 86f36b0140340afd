"""DINOv3's transformers: settings that cannot be, positions in training, images of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.backbones.dinov3 import DINOv3, RotaryPositions, swiglu_width

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("indices", [(), (2,), (1, 0), (0, 0)])
def test_block_indices_that_cannot_be_are_refused(indices):
    with pytest.raises(ValueError, match="must ascend and be below depth=2"):
        DINOv3(**TINY, out_indices=indices).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_an_unknown_feed_forward_layer_is_refused():
    model = DINOv3(**TINY, out_indices=(1,), ffn="gelu")
    with pytest.raises(ValueError, match=r"ffn='gelu': must be one of mlp, swiglu, .*swiglufused"):
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "width"),
    [
        (384, 6, 8, 1536),
        (1280, 6, 8, 5120),
        (4096, 3, 64, 8192),
        (1536, 4, 8, 4096),
        (24, 2.5, 8, 40),
    ],
)
def test_widths_of_swiglu_are_the_published_ones(channels, ratio, multiple, width):
    assert swiglu_width(channels, ratio, multiple) == width


def test_coordinates_are_rescaled_anew_in_every_call_of_training():
    module = RotaryPositions(head_width=16)
    variables = module.init(jax.random.key(0), (2, 3), False)
    evaluated, _ = module.apply(variables, (2, 3), False)
    keys = [{"dropout": jax.random.key(seed)} for seed in (1, 2)]
    drawn = [module.apply(variables, (2, 3), True, rngs=key)[0] for key in keys]
    assert not np.allclose(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], evaluated)


def test_a_remainder_of_an_image_is_dropped():
    model = DINOv3(**TINY, out_indices=(1,))
    images = np.random.default_rng(0).standard_normal((1, 50, 40, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    (features,) = model.apply(variables, images)
    (expected,) = model.apply(variables, images[:, :48, :32])
    assert features.shape == (1, 3, 2, 32)
    np.testing.assert_array_equal(features, expected)
