"""The TPU kernels of multi-scale deformable attention: interpreted on CPU, compiled for TPU.

What every implementation has to fulfil is in test_ms_deform_attn.py; here is what only these
kernels could get wrong: blocks, strips, tiles and which of them are visited.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT
from reference_files import Recording, relative_error
from test_ms_deform_attn import FILES, GRADIENTS, VALUES, arguments, output_and_gradients

from pallas_kernels import reference, tpu_ms_deform_attn

CHIPS = ("v5e", "v5p", "v6e", "v7x")


def operator(shapes, implementation=tpu_ms_deform_attn):
    """The operator as a function of its three arrays."""
    return lambda value, locations, weights: implementation.ms_deform_attn(
        value, shapes, locations, weights
    )


@functools.cache
def compiled(shapes, implementation):
    """Jitted once for all cases of the same shapes."""
    return jax.jit(functools.partial(output_and_gradients, operator(shapes, implementation)))


def errors(shapes, *inputs):
    """Of the output and the three gradients."""
    results = compiled(shapes, tpu_ms_deform_attn)(*inputs)
    expected = compiled(shapes, reference)(*inputs)
    return [relative_error(*pair) for pair in zip(results, expected, strict=True)]


def assert_equal_to_the_reference(shapes, *inputs):
    value, *gradients = errors(shapes, *inputs)
    assert value < VALUES
    assert max(gradients) < GRADIENTS


def spread(around, shapes, locations, pixels):
    """Locations within some pixels of a point in 0…1."""
    size = np.array([(width, height) for height, width in shapes], np.float32)[:, None]
    noise = np.random.default_rng(0).uniform(-pixels, pixels, locations.shape) / size
    return jnp.asarray(np.asarray(around) + noise, jnp.float32)


@pytest.mark.reference
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_recorded_operator(path):
    recording = Recording(path)
    shapes = tuple(map(tuple, recording.json("meta")["spatial_shapes"]))
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [jnp.asarray(recording[f"inputs/{name}"]) for name in names]
    output, *gradients = compiled(shapes, tpu_ms_deform_attn)(*inputs, recording["cotangents/out"])
    assert relative_error(output, recording["outputs/out"]) < VALUES
    # Exactly on a pixel centre the recorded location gradient depends on how the original rounded.
    smooth = ~recording["kink"][..., None]
    for name, gradient in zip(names, gradients, strict=True):
        used = smooth if name == "sampling_locations" else True
        expected = np.where(used, recording[f"grads/inputs/{name}"], 0)
        assert relative_error(np.where(used, gradient, 0), expected) < GRADIENTS, name


@pytest.mark.parametrize("pixels", [0.3, 3.0, 1e6])
def test_any_spread_of_the_points_equals_the_reference(pixels):
    shapes = ((21, 20), (1, 1))  # 4 rows a block, and one block
    value, locations, *rest = arguments(shapes, batch=1, heads=2, points=2)
    locations = spread((0.4, 0.8), shapes, locations, pixels)
    assert_equal_to_the_reference(shapes, value, locations, *rest)


def test_a_level_of_several_strips_and_queries_of_several_tiles_equal_the_reference():
    shapes = ((5, 300),)
    queries = 2 * tpu_ms_deform_attn.TILE + 3
    inputs = arguments(shapes, batch=1, queries=queries, heads=1, points=2)
    assert_equal_to_the_reference(shapes, *inputs)
    value, locations, *rest = inputs
    one_strip = spread((0.5, 0.5), shapes, locations, 2)
    assert_equal_to_the_reference(shapes, value, one_strip, *rest)


def test_on_pixel_centres_and_borders_it_equals_the_reference():
    """Also where a strip ends; with powers of two the locations of pixel centres are exact."""
    shapes = ((4, 256),)
    x, y = np.meshgrid([-1, 0, 1, 126, 127, 128, 129, 254, 255, 256], np.arange(-1, 5))
    centres = np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)
    value, _, weights, cotangent = arguments(shapes, 1, len(centres), heads=1, points=1)
    size = np.array([256, 4], np.float32)
    locations = ((centres + 0.5) / size).reshape(*weights.shape, 2)
    assert_equal_to_the_reference(shapes, value, jnp.asarray(locations), weights, cotangent)


@pytest.mark.parametrize("far", [-1e30, -0.6, 1.6, 1e30])
def test_points_far_outside_sample_zeros_and_have_no_gradient(far):
    shapes = ((21, 20), (1, 1))
    value, locations, *rest = arguments(shapes, batch=1, heads=2, points=2)
    locations = jnp.full_like(locations, far)
    for result in compiled(shapes, tpu_ms_deform_attn)(value, locations, *rest):
        assert not jnp.any(result)


def test_bfloat16_rounds_values_and_nothing_else():
    shapes = ((1, 127),)
    value, locations, weights, cotangent = arguments(shapes, batch=1)
    value, cotangent = (x.astype(jnp.bfloat16) for x in (value, cotangent))
    run = compiled(shapes, tpu_ms_deform_attn)
    results = run(value, locations, weights, cotangent)
    exact = compiled(shapes, reference)(
        value.astype(jnp.float32), locations, weights, cotangent.astype(jnp.float32)
    )
    assert [x.dtype for x in results] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    # Half a unit in the last place of the output; coordinates and sums are in float32.
    tolerances = (2**-8, 2**-8, GRADIENTS, GRADIENTS)
    for result, expected, tolerance in zip(results, exact, tolerances, strict=True):
        assert relative_error(result.astype(jnp.float32), expected) < tolerance


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_in_nothing_out(empty):
    shapes = ((5, 7),)
    inputs = arguments(shapes, **{empty: 0})
    output, *gradients = compiled(shapes, tpu_ms_deform_attn)(*inputs)
    assert output.shape == inputs[-1].shape
    for gradient, array in zip(gradients, inputs, strict=False):
        assert gradient.shape == array.shape
        assert not jnp.any(gradient)


def test_under_vmap_checkpoint_and_twice_in_a_function_it_equals_the_reference():
    shapes = ((5, 7),)
    *inputs, _ = map(jnp.stack, zip(*(arguments(shapes, seed=i) for i in range(2)), strict=True))

    def loss(implementation, value, locations, weights):
        run = jax.vmap(jax.checkpoint(operator(shapes, implementation)))
        first = run(value, locations, weights)
        return jnp.sum(first * run(value, 1 - locations, weights))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(implementation, *inputs):
        return jax.grad(functools.partial(loss, implementation), (0, 1, 2))(*inputs)

    results, expected = gradients(tpu_ms_deform_attn, *inputs), gradients(reference, *inputs)
    for result, gradient in zip(results, expected, strict=True):
        assert relative_error(result, gradient) < GRADIENTS


@pytest.mark.full
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu is missing: pip install "jax[tpu]"'
)
@pytest.mark.parametrize("chip", CHIPS)
def test_compiles_for_tpu_at_the_sizes_of_the_published_models(chip):
    program = ROOT / "tests" / "compile_ms_deform_attn_for_tpu.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, program, chip],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["chip"] for line in done.stdout.splitlines()} == {chip}
