"""What queries may look at, and what they say."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models.heads.mask2former_head import Mask2FormerHead, MaskPredictions, blocked_by
from jaxseg.models.heads.mask2former_layers import MultiheadAttention


def test_a_query_looks_within_its_mask_and_everywhere_if_that_is_empty():
    left = np.where(np.arange(4) < 2, 1.0, -1.0)
    nowhere, undecided = np.full(4, -1.0), np.zeros(4)
    logits = np.broadcast_to(np.stack([left, nowhere, undecided])[:, None], (1, 3, 4, 4))
    blocked = blocked_by(jnp.asarray(logits, jnp.float32), (2, 2))
    np.testing.assert_array_equal(blocked[0, 0], [False, True, False, True])
    assert not np.any(blocked[0, 1:])


def test_what_is_blocked_has_no_influence_and_no_gradient():
    rng = np.random.default_rng(0)
    query, memory = (jnp.asarray(rng.normal(size=(1, n, 8)), jnp.float32) for n in (3, 5))
    blocked = jnp.asarray(np.tile([False, True, False, True, True], (1, 3, 1)))
    attention = MultiheadAttention(num_heads=2)
    variables = attention.init(jax.random.key(0), query, memory, memory, blocked)

    def mixed(memory):
        return attention.apply(variables, query, memory, memory, blocked)

    output, transpose = jax.vjp(mixed, memory)
    (gradient,) = transpose(jnp.ones_like(output))
    np.testing.assert_array_equal(mixed(memory.at[:, 1].set(1e6)), output)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), ~blocked[:, 0])


def test_what_a_query_gives_to_no_object_is_lost_to_the_classes():
    shares = np.array([[[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]])  # of two queries, [b, q, k + 1]
    masks = np.array([[[[0.5]], [[0.25]]]])  # of one pixel, [b, q, h, w]
    predictions = MaskPredictions(
        jnp.log(jnp.asarray(shares, jnp.float32))[None],
        jnp.asarray(np.log(masks / (1 - masks)), jnp.float32)[None],
    )
    np.testing.assert_allclose(predictions.semantic(), [[[[0.25, 0.25]]]], rtol=1e-6)


def test_in_bfloat16_predictions_and_gradients_are_finite_float32(standard_promotion):
    head = Mask2FormerHead(
        num_classes=3,
        channels=32,
        num_queries=5,
        num_heads=4,
        encoder_layers=1,
        encoder_ffn_dim=16,
        decoder_layers=2,
        decoder_ffn_dim=16,
        norm_groups=8,
        dtype=jnp.bfloat16,
    )
    rng = np.random.default_rng(0)
    features = [jnp.asarray(rng.normal(size=(2, n, n, 8)), jnp.bfloat16) for n in (16, 8, 4, 2)]
    variables = head.init(jax.random.key(0), features, train=True)

    def scalar(variables):
        predictions = head.apply(variables, features, train=True)
        return jnp.sum(predictions.semantic()), predictions

    gradient = jax.jit(jax.grad(scalar, has_aux=True))
    of_variables, predictions = gradient(variables)
    assert predictions.class_logits.shape == (3, 2, 5, 4)
    assert predictions.mask_logits.shape == (3, 2, 5, 16, 16)
    for x in jax.tree.leaves((predictions, of_variables)):
        assert x.dtype == jnp.float32
        assert np.all(np.isfinite(x))
