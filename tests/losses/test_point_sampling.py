"""Sampling in points: against whole maps, and which points are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses.point_sampling import (
    point_sample,
    random_points,
    sample_class,
    sample_uncertain_points,
)


def dense_sample(mask, points):
    """The definition, in float64: every pixel is a tent over its center."""
    height, width = mask.shape
    x, y = points.astype(np.float64).T * [[width], [height]] - 0.5
    tent_x = np.maximum(0, 1 - np.abs(x[:, None] - np.arange(width)))
    tent_y = np.maximum(0, 1 - np.abs(y[:, None] - np.arange(height)))
    return np.einsum("ny,nx,yx->n", tent_y, tent_x, mask)


@pytest.fixture
def points():
    """Points inside, on the edges, and up to half an image outside."""
    inside = 2 * np.random.default_rng(0).random((200, 2)) - 0.5
    edges = [(0, 0), (1, 1), (0, 1), (0.5, 0), (1, 0.25)]
    return np.concatenate([inside, edges]).astype(np.float32)


@pytest.mark.parametrize("hw", [(5, 8), (1, 1), (16, 3)])
def test_samples_are_bilinear_and_zero_outside(points, hw):
    masks = np.random.default_rng(1).standard_normal((3, *hw), np.float32)
    found = jax.jit(point_sample)(masks, points)
    expected = np.stack([dense_sample(mask, points) for mask in masks])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gradient_is_the_transpose_and_does_not_reach_the_points(points):
    masks = np.random.default_rng(1).standard_normal((3, 5, 8), np.float32)
    cotangent = np.random.default_rng(2).standard_normal((3, len(points)), np.float32)
    to_masks, to_points = jax.jit(
        jax.grad(lambda *inputs: jnp.sum(point_sample(*inputs) * cotangent), argnums=(0, 1))
    )(masks, points)
    basis = np.eye(40).reshape(40, 5, 8)
    matrix = np.stack([dense_sample(pixel, points) for pixel in basis])
    np.testing.assert_allclose(to_masks.reshape(3, 40), cotangent @ matrix.T, atol=2e-4)
    assert not np.any(to_points)


def test_half_precision_maps_are_mixed_in_float32(points):
    masks = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5, 8)), jnp.bfloat16)
    found = point_sample(masks, points)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, point_sample(masks.astype(jnp.float32), points))


def test_a_class_is_sampled_as_its_mask_would_be(points):
    labels = np.random.default_rng(1).choice([0, 1, 2, 255], (6, 7)).astype(np.int32)
    classes = np.array([0, 2, 5], np.int32)
    masks = (labels == classes[:, None, None]).astype(np.float32)
    of_classes = jax.jit(jax.vmap(sample_class, in_axes=(None, 0, None)))
    found, expected = of_classes(labels, classes, points), jax.jit(point_sample)(masks, points)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_chosen_candidates_are_those_nearest_to_the_edge():
    mask = np.random.default_rng(1).standard_normal((6, 7)).astype(np.float32)
    candidates = np.asarray(random_points(jax.random.key(0), 90))
    chosen = jax.jit(sample_uncertain_points, static_argnums=2)(mask, candidates, 30)
    order = np.argsort(np.abs(dense_sample(mask, candidates)))
    np.testing.assert_array_equal(chosen, candidates[order[:30]])
