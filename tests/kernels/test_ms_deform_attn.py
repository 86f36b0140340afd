"""Multi-scale deformable attention: recorded numbers, and one set of facts for all implementations.

Kernels are interpreted where they cannot run. What only those of one platform could get wrong is in
test_gpu_kernels.py
and test_tpu_ms_deform_attn.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ms_deform_attn
from pallas_kernels.gpu import operators as gpu
from support import operators
from support.operators import INTERPRET, with_gradients
from support.reference_files import Recording, recordings, relative_error

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

IMPLEMENTATIONS = {
    "reference": functools.partial(ms_deform_attn, implementation="reference"),
    "xla": functools.partial(ms_deform_attn, implementation="xla"),
    "gpu": functools.partial(gpu.ms_deform_attn, interpret=INTERPRET),
    "gpu deterministic": functools.partial(
        gpu.ms_deform_attn, interpret=INTERPRET, deterministic=True
    ),
    "tpu": functools.partial(ms_deform_attn, implementation="tpu"),
}
KERNELS = ("gpu", "gpu deterministic", "tpu")  # slow, as they are interpreted
SHAPES = ((4, 8), (1, 1))  # powers of two: locations of pixel centers are exact
LEVELS = {
    "one level": ((5, 7),),
    "two levels": SHAPES,
    "four levels": ((9, 5), (5, 3), (3, 2), (1, 1)),
}

implementations = operators.over(IMPLEMENTATIONS)
optimized = operators.over([*IMPLEMENTATIONS][1:])


@functools.cache
def operator(implementation, shapes=SHAPES):
    """The operator as a function of its three arrays."""
    run = IMPLEMENTATIONS[implementation]
    return lambda value, locations, weights: run(value, shapes, locations, weights)


def definition(*inputs, shapes=SHAPES):
    """Output and gradients."""
    return with_gradients(operator("reference", shapes))(*inputs)


def pixels_of(shapes):
    """The size of a level as (x, y), beside its points: [levels, 1, 2]."""
    return np.array([(width, height) for height, width in shapes])[:, None]


def arguments(
    shapes=SHAPES, kind="between", batch=2, queries=8, heads=2, depth=5, points=2, seed=0
):
    """value, sampling_locations, attention_weights and a cotangent; some points lie outside."""
    rng = np.random.default_rng(seed)
    size = pixels_of(shapes)
    sampled = (batch, queries, heads, len(shapes), points)
    pixel = rng.integers(-1, size + 1, (*sampled, 2))
    pixel = pixel + operators.displacements(kind, rng, pixel.shape)
    weights = rng.uniform(size=sampled)
    arrays = (
        rng.standard_normal((batch, sum(h * w for h, w in shapes), heads, depth)),
        (pixel + 0.5) / size,
        weights / weights.sum((-1, -2), keepdims=True),
        rng.standard_normal((batch, queries, heads * depth)),
    )
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


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


FILES = [f for f in recordings("vit_adapter/modules") if f.stem.startswith("ms_deform_attn_core")]
RECORDED = {f: tuple(map(tuple, Recording(f).json("meta")["spatial_shapes"])) for f in FILES}
ONE_OF_EACH_NUMBER_OF_LEVELS = {len(shapes): f for f, shapes in RECORDED.items()}.values()
CASES = operators.recorded_cases(
    FILES,
    {
        "reference": FILES,
        "xla": FILES,
        "gpu": ONE_OF_EACH_NUMBER_OF_LEVELS,
        "gpu deterministic": (),
        "tpu": FILES[:1],
    },
)


@pytest.mark.reference
@pytest.mark.parametrize(("path", "implementation"), CASES)
def test_equals_the_recorded_operator(path, implementation):
    names = ("value", "sampling_locations", "attention_weights")
    run = operator(implementation, RECORDED[path])
    operators.check_recording(run, Recording(path), names, "out")


@optimized
@pytest.mark.parametrize("kind", operators.KINDS)
def test_equals_the_definition_for_any_location(kind, implementation):
    inputs = arguments(kind=kind)
    operators.check(with_gradients(operator(implementation))(*inputs), definition(*inputs))


@pytest.mark.parametrize(
    ("shapes", "implementation"),
    [
        pytest.param(
            shapes,
            implementation,
            id=f"{name}-{implementation}",
            marks=[pytest.mark.full] * (implementation in KERNELS and shapes != SHAPES),
        )
        for name, shapes in LEVELS.items()
        for implementation in IMPLEMENTATIONS
    ],
)
def test_equals_a_sum_over_all_pixels_and_its_finite_differences(shapes, implementation):
    inputs = arguments(shapes)
    run = operator(implementation, shapes)
    value, *others, _ = inputs
    output, *_ = with_gradients(run)(*inputs)
    assert relative_error(output, in_float64(value, shapes, *others)) < operators.VALUES
    operators.check_central_differences(run, inputs, pixel=1 / pixels_of(shapes))


@implementations
def test_at_pixel_centers_the_gradient_is_the_right_sided_difference(implementation):
    """At those of all pixels, of which some are borders, and one pixel outside."""
    value, locations, *rest = arguments()
    for level, (height, width) in enumerate(SHAPES):
        centers = np.stack(np.meshgrid(np.arange(-1, width + 1), np.arange(-1, height + 1)), -1)
        points = locations[:, :, :, level].shape
        centers = np.resize(centers.reshape(-1, 2), points)
        locations = locations.at[:, :, :, level].set((centers + 0.5) / pixels_of(SHAPES)[level])
    inputs = (value, locations, *rest)
    pixel = 1 / pixels_of(SHAPES)
    operators.check_right_sided_differences(operator(implementation), inputs, pixel)
    operators.check(with_gradients(operator(implementation))(*inputs), definition(*inputs))


@implementations
@pytest.mark.parametrize("far", [-1e30, -1e6, -0.6, 1.6, 1e6, 1e30])
def test_points_far_outside_sample_zeros_and_have_no_gradient(far, implementation):
    value, locations, *rest = arguments()
    locations = locations.at[:, 0].set(far)
    results = with_gradients(operator(implementation))(value, locations, *rest)
    operators.check(results, definition(value, locations, *rest))
    output, _, *gradients = results
    for result in (output, *gradients):
        assert not jnp.any(result[:, 0])


@pytest.mark.parametrize("implementation", ["gpu", "gpu deterministic"])
@pytest.mark.parametrize("outside", [np.nan, np.inf])
def test_reads_no_pixel_that_has_no_weight(outside, implementation):
    """Points outside the image do not meet what stands at its border."""
    value, locations, *rest = arguments()
    results = with_gradients(operator(implementation))(
        jnp.full_like(value, outside), jnp.full_like(locations, 1.9), *rest
    )
    assert not any(np.any(result) for result in results)


@operators.over(IMPLEMENTATIONS, slow=["gpu deterministic"])
def test_vmap_equals_a_loop(implementation):
    operators.check_vmap(operator(implementation), [arguments(seed=seed) for seed in range(2)])


@functools.cache
def twice(once):
    """On the same value."""

    def run(value, locations, weights):
        return once(value, locations, weights) * once(value, 1 - locations, weights**2)

    return run


@operators.over(IMPLEMENTATIONS, slow=["reference", "gpu deterministic"])
def test_rematerialized_and_used_twice(implementation):
    """The second gradient must not land in the buffer of the first."""
    inputs = arguments()
    rematerialized = twice(jax.checkpoint(operator(implementation)))
    expected = with_gradients(twice(operator("reference")))(*inputs)
    operators.check(with_gradients(rematerialized)(*inputs), expected)


@implementations
def test_bfloat16_rounds_the_values_but_not_the_coordinates(implementation):
    shapes = ((1, 127),)  # bfloat16 has 8 bits: its coordinates would be off by a quarter
    run, exact = operator(implementation, shapes), operator("reference", shapes)
    operators.check_bfloat16(run, exact, arguments(shapes))


@implementations
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_in_nothing_out(empty, implementation):
    inputs = arguments(**{empty: 0})
    output, *gradients = with_gradients(operator(implementation))(*inputs)
    assert output.shape == inputs[-1].shape
    for gradient, array in zip(gradients, inputs[:3], strict=True):
        assert gradient.shape == array.shape
        assert not jnp.any(gradient)


@operators.over(IMPLEMENTATIONS, slow=["reference", "gpu deterministic", "tpu"])
def test_split_over_eight_devices_equals_one_device(implementation):
    shares = [arguments(seed=seed) for seed in range(8)]
    operators.check_split_over_eight_devices(operator(implementation), shares)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform):
    def loss(value, locations, weights):
        return ms_deform_attn(value, SHAPES, locations, weights).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    assert gradient.trace(*arguments()[:3]).lower(lowering_platforms=(platform,)).as_text()


def test_keeps_no_tensor_of_all_samples():
    shapes = ((16, 16), (8, 8))
    inputs = arguments(shapes, batch=1, queries=320, heads=4, depth=32, points=16)
    one_corner = inputs[-1].nbytes * len(shapes) * 16  # float32, of all levels and points
    compiled = with_gradients(operator("xla", shapes)).lower(*inputs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < one_corner


@pytest.mark.usefixtures("unchecked_types")
def test_refuses_shapes_that_do_not_belong_together():
    value, locations, weights, _ = arguments()
    with pytest.raises(ValueError, match=r"value \(2, 33, 2, 5\) has 33 pixels.*have 32"):
        ms_deform_attn(value, SHAPES[:1], locations, weights)
    with pytest.raises(ValueError, match=r"attention_weights \(2, 8, 2, 1, 2\)"):
        ms_deform_attn(value, SHAPES, locations, weights[:, :, :, :1])
    with pytest.raises(ValueError, match=r"sampling_locations \(2, 6, 2, 2, 2, 2\)"):
        ms_deform_attn(value, SHAPES, locations[:, :6], weights)


def test_names_the_implementations_there_are():
    value, locations, weights, _ = arguments()
    with pytest.raises(ValueError, match="'cuda'; there are reference, xla, gpu, tpu"):
        ms_deform_attn(value, SHAPES, locations, weights, implementation="cuda")
