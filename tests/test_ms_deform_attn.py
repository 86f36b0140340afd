"""Multi-scale deformable attention: recorded numbers, and one set of facts per implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from reference_files import Recording, recordings, relative_error

from jaxseg import parallel
from pallas_kernels import ms_deform_attn

# Float32 rounding of sums in another order; the originals differ as much from their own float64.
VALUES, GRADIENTS = 1e-5, 1e-4

LEVELS = {
    "one level": ((5, 7),),
    "three levels": ((8, 6), (4, 3), (2, 1)),
    "four levels": ((9, 5), (5, 3), (3, 2), (1, 1)),
}
FILES = [f for f in recordings("vit_adapter/modules") if f.stem.startswith("ms_deform_attn_core")]

implementations = pytest.mark.parametrize("implementation", ["reference", "xla"])
levels = pytest.mark.parametrize("shapes", LEVELS.values(), ids=LEVELS)


def arguments(shapes, batch=2, queries=5, heads=3, depth=4, points=4, seed=0):
    """value, sampling_locations, attention_weights and a cotangent; some points lie outside.

    Every pixel coordinate is at least 0.1 away from an integer, where the operator has a kink.
    """
    rng = np.random.default_rng(seed)
    size = np.array([(width, height) for height, width in shapes])[:, None]  # [levels, 1, (x, y)]
    sampled = (batch, queries, heads, len(shapes), points)
    pixel = np.floor(rng.uniform(-3, size + 3, (*sampled, 2))) + rng.uniform(
        0.1, 0.9, (*sampled, 2)
    )
    value = rng.standard_normal((batch, sum(h * w for h, w in shapes), heads, depth))
    weights = rng.uniform(size=sampled)
    cotangent = rng.standard_normal((batch, queries, heads * depth))
    arrays = (
        value,
        (pixel + 0.5) / size,
        weights / weights.sum((-1, -2), keepdims=True),
        cotangent,
    )
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def operator(shapes, implementation=None):
    """The operator as a function of its three arrays."""
    return lambda value, locations, weights: ms_deform_attn(
        value, shapes, locations, weights, implementation=implementation
    )


def output_and_gradients(run, value, locations, weights, cotangent):
    def outcome(*inputs):
        output, transpose = jax.vjp(run, *inputs)
        return output, *transpose(cotangent)

    return jax.jit(outcome)(value, locations, weights)


def in_float64(value, shapes, locations, weights):
    """The operator by its definition as a sum over all pixels, in NumPy's float64."""
    value, locations, weights = (np.asarray(x, np.float64) for x in (value, locations, weights))
    total, start = 0.0, 0
    for level, (height, width) in enumerate(shapes):
        x = locations[..., level, :, :1] * width - 0.5  # [b, q, heads, points, 1]
        y = locations[..., level, :, 1:] * height - 0.5
        hat_x = np.maximum(0, 1 - np.abs(x - np.arange(width)))
        hat_y = np.maximum(0, 1 - np.abs(y - np.arange(height)))
        pixels = value[:, start : start + height * width].reshape(
            len(value), height, width, *value.shape[2:]
        )
        total += np.einsum(
            "bqmp,bqmpy,bqmpx,byxmd->bqmd", weights[..., level, :], hat_y, hat_x, pixels
        )
        start += height * width
    return total.reshape(*total.shape[:2], -1)


@pytest.mark.reference
@implementations
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_recorded_operator(path, implementation):
    recording = Recording(path)
    shapes = tuple(map(tuple, recording.json("meta")["spatial_shapes"]))
    names = ("value", "sampling_locations", "attention_weights")
    output, *gradients = output_and_gradients(
        operator(shapes, implementation),
        *(recording[f"inputs/{name}"] for name in names),
        recording["cotangents/out"],
    )
    assert relative_error(output, recording["outputs/out"]) < VALUES
    # Exactly on a pixel centre the recorded location gradient depends on how the original rounded.
    smooth = ~recording["kink"][..., None]
    for name, gradient in zip(names, gradients, strict=True):
        used = smooth if name == "sampling_locations" else True
        expected = np.where(used, recording[f"grads/inputs/{name}"], 0)
        assert relative_error(np.where(used, gradient, 0), expected) < GRADIENTS, name


@implementations
@levels
def test_equals_a_sum_over_all_pixels_and_its_finite_differences(shapes, implementation):
    *inputs, cotangent = arguments(shapes)
    output, *gradients = output_and_gradients(operator(shapes, implementation), *inputs, cotangent)
    assert relative_error(output, in_float64(inputs[0], shapes, *inputs[1:])) < VALUES

    rng = np.random.default_rng(1)
    inputs = [np.asarray(x, np.float64) for x in inputs]
    for i, gradient in enumerate(gradients):
        step = 1e-6 * rng.choice([-1.0, 1.0], inputs[i].shape)
        ends = []
        for sign in (1, -1):
            value, *rest = (x + sign * step if i == j else x for j, x in enumerate(inputs))
            ends.append(
                np.sum(in_float64(value, shapes, *rest) * np.asarray(cotangent, np.float64))
            )
        expected = (ends[0] - ends[1]) / 2
        scale = np.sum(np.abs(gradient * step))
        assert abs(np.sum(np.asarray(gradient, np.float64) * step) - expected) < GRADIENTS * scale


@implementations
def test_on_a_pixel_centre_the_location_gradient_is_the_right_sided_difference(implementation):
    shapes = ((4, 8),)  # powers of two: the locations of pixel centres are exact
    value, _, weights, cotangent = arguments(shapes, queries=60, points=1)
    x, y = np.meshgrid(np.arange(-1, 9), np.arange(-1, 5))  # one pixel outside, and all borders
    pixel = np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)[:, None, None, None]
    size = np.array([8, 4], np.float32)
    locations = np.broadcast_to((pixel + 0.5) / size, (*weights.shape, 2))
    _, _, gradient, _ = output_and_gradients(
        operator(shapes, implementation), value, jnp.asarray(locations), weights, cotangent
    )
    here = in_float64(value, shapes, locations, weights)
    for axis in range(2):
        right = locations + np.eye(2)[axis] * 2**-20
        change = (in_float64(value, shapes, right, weights) - here) * cotangent * 2**20
        expected = change.reshape(*weights.shape[:3], -1).sum(-1)
        assert relative_error(gradient[..., 0, 0, axis], expected) < GRADIENTS


@implementations
@pytest.mark.parametrize("far", [-1e30, -1e6, -0.6, 1.6, 1e6, 1e30])
def test_points_far_outside_sample_zeros_and_have_no_gradient(far, implementation):
    shapes = LEVELS["three levels"]
    value, locations, weights, cotangent = arguments(shapes)
    locations = locations.at[:, 0].set(far)
    output, *gradients = output_and_gradients(
        operator(shapes, implementation), value, locations, weights, cotangent
    )
    assert not jnp.any(output[:, 0])
    assert all(jnp.all(jnp.isfinite(gradient)) for gradient in gradients)
    assert not jnp.any(gradients[1][:, 0])
    assert not jnp.any(gradients[2][:, 0])


@implementations
def test_vmap_equals_a_loop(implementation):
    shapes = LEVELS["three levels"]
    cases = [arguments(shapes, seed=seed) for seed in range(3)]

    @jax.jit
    def run(*inputs):
        return output_and_gradients(operator(shapes, implementation), *inputs)

    stacked = jax.vmap(run)(*map(jnp.stack, zip(*cases, strict=True)))
    for i, case in enumerate(cases):
        for result, expected in zip(stacked, run(*case), strict=True):
            assert relative_error(result[i], expected) < VALUES


@implementations
def test_rematerialisation_changes_nothing(implementation):
    shapes = LEVELS["three levels"]
    run = operator(shapes, implementation)
    plain = output_and_gradients(run, *arguments(shapes))
    again = output_and_gradients(jax.checkpoint(run), *arguments(shapes))
    for result, expected in zip(again, plain, strict=True):
        assert relative_error(result, expected) < VALUES


@implementations
def test_bfloat16_rounds_the_values_but_not_the_coordinates(implementation):
    shapes = ((1, 257),)  # bfloat16 has 8 bits: its coordinates would be off by a pixel
    run = operator(shapes, implementation)
    value, locations, weights, cotangent = arguments(shapes)
    value, cotangent = (x.astype(jnp.bfloat16) for x in (value, cotangent))
    results = output_and_gradients(run, value, locations, weights, cotangent)
    exact = output_and_gradients(
        run, value.astype(jnp.float32), locations, weights, cotangent.astype(jnp.float32)
    )
    assert [x.dtype for x in results] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    for result, expected in zip(results, exact, strict=True):
        assert relative_error(result.astype(jnp.float32), expected) < 2**-8


def test_split_over_eight_devices_equals_one_device():
    shapes = LEVELS["three levels"]
    inputs = arguments(shapes, batch=16)
    expected = output_and_gradients(operator(shapes), *inputs)
    mesh = parallel.make_mesh({"data": 2, "fsdp": 4})
    split = [jax.device_put(x, NamedSharding(mesh, parallel.BATCH)) for x in inputs]
    with jax.set_mesh(mesh):
        results = output_and_gradients(parallel.over_batch(operator(shapes)), *split)
    for result, single in zip(results, expected, strict=True):
        assert len(result.sharding.device_set) == 8
        assert relative_error(result, single) < VALUES


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform):
    shapes = LEVELS["three levels"]

    def loss(*inputs):
        return operator(shapes)(*inputs).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    assert gradient.trace(*arguments(shapes)[:3]).lower(lowering_platforms=(platform,)).as_text()


def test_keeps_no_tensor_of_all_samples():
    shapes = ((16, 16), (8, 8))
    *inputs, cotangent = arguments(shapes, batch=1, queries=320, heads=4, depth=32, points=16)

    def run(*inputs):
        output, transpose = jax.vjp(operator(shapes), *inputs)
        return output, transpose(cotangent)

    one_corner = cotangent.nbytes * len(shapes) * 16  # float32, of all levels and points
    compiled = jax.jit(run).lower(*inputs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < one_corner


def test_refuses_shapes_that_do_not_belong_together():
    shapes = LEVELS["three levels"]
    value, locations, weights, _ = arguments(shapes)
    with pytest.raises(ValueError, match=r"value \(2, 62, 3, 4\) has 62 pixels.*have 60"):
        ms_deform_attn(value, shapes[:2], locations, weights)
    with pytest.raises(ValueError, match=r"attention_weights \(2, 5, 3, 2, 4\)"):
        ms_deform_attn(value, shapes, locations, weights[:, :, :, :2])
    with pytest.raises(ValueError, match=r"sampling_locations \(2, 4, 3, 3, 4, 2\)"):
        ms_deform_attn(value, shapes, locations[:, :4], weights)


def test_names_the_implementations_there_are():
    shapes = LEVELS["one level"]
    with pytest.raises(ValueError, match="'cuda'; there are reference, xla, gpu, tpu"):
        ms_deform_attn(
            *arguments(shapes)[:1], shapes, *arguments(shapes)[1:3], implementation="cuda"
        )
