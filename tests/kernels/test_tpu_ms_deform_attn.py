"""The TPU kernels of multi-scale deformable attention: interpreted on CPU, compiled for TPU.

What every implementation has to fulfil is in test_ms_deform_attn.py; here is what only these
kernels could get wrong: blocks, strips, tiles and which of them are visited.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from test_ms_deform_attn import arguments, definition, operator

from pallas_kernels.tpu import ms_deform_attn
from support import operators
from support.operators import with_gradients

CHIPS = ("v5e", "v5p", "v6e", "v7x")


def assert_equal_to_the_reference(shapes, *inputs):
    results = with_gradients(operator("tpu", shapes))(*inputs)
    operators.check(results, definition(*inputs, shapes=shapes))


def spread(around, shapes, locations, pixels):
    """Locations within some pixels of a point in 0…1."""
    size = np.array([(width, height) for height, width in shapes], np.float32)[:, None]
    noise = np.random.default_rng(0).uniform(-pixels, pixels, locations.shape) / size
    return jnp.asarray(np.asarray(around) + noise, jnp.float32)


@pytest.mark.parametrize("pixels", [0.3, 3.0, 1e6])
def test_any_spread_of_the_points_equals_the_reference(pixels):
    shapes = ((21, 20), (1, 1))  # 4 rows a block, and one block
    value, locations, *rest = arguments(shapes, batch=1, heads=2, points=2)
    locations = spread((0.4, 0.8), shapes, locations, pixels)
    assert_equal_to_the_reference(shapes, value, locations, *rest)


def test_a_level_of_several_strips_and_queries_of_several_tiles_equal_the_reference():
    shapes = ((5, 300),)
    queries = 2 * ms_deform_attn.TILE + 3
    inputs = arguments(shapes, batch=1, queries=queries, heads=1, points=2)
    assert_equal_to_the_reference(shapes, *inputs)
    value, locations, *rest = inputs
    one_strip = spread((0.5, 0.5), shapes, locations, 2)
    assert_equal_to_the_reference(shapes, value, one_strip, *rest)


def test_on_pixel_centers_and_borders_it_equals_the_reference():
    """Also where a strip ends; with powers of two the locations of pixel centers are exact."""
    shapes = ((4, 256),)
    x, y = np.meshgrid([-1, 0, 1, 126, 127, 128, 129, 254, 255, 256], np.arange(-1, 5))
    centers = np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)
    value, _, weights, cotangent = arguments(
        shapes, batch=1, queries=len(centers), heads=1, points=1
    )
    size = np.array([256, 4], np.float32)
    locations = ((centers + 0.5) / size).reshape(*weights.shape, 2)
    assert_equal_to_the_reference(shapes, value, jnp.asarray(locations), weights, cotangent)


@pytest.mark.parametrize("far", [-1e30, -0.6, 1.6, 1e30])
def test_where_all_points_are_outside_nothing_is_visited(far):
    shapes = ((21, 20), (1, 1))
    value, locations, *rest = arguments(shapes, batch=1, heads=2, points=2)
    locations = jnp.full_like(locations, far)
    for result in with_gradients(operator("tpu", shapes))(value, locations, *rest):
        assert not jnp.any(result)
