"""The GPU kernels without a GPU: their values in interpret mode, and their lowering for CUDA."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_files import Recording, recordings, relative_error

from pallas_kernels import gpu, reference

# Jax says so from 0.11 on; `pallas_kernels.gpu_samples` is the only file that knows of Triton.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

# Float32 rounding of sums in another order; the originals differ as much from their own float64.
VALUES, GRADIENTS = 1e-5, 1e-4

KERNEL = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
GROUPS, HW = 3, (5, 8)
SHAPES = ((8, 4), (4, 2), (1, 1))  # powers of two: locations of pixel centres are exact
HEADS = 3

RUNS = {
    "reference": (reference, {}),
    "atomics": (gpu, {"interpret": True}),
    "deterministic": (gpu, {"interpret": True, "deterministic": True}),
    "on a GPU": (gpu, {}),
}


def dcnv3(value, offset, mask, run="atomics"):
    module, options = RUNS[run]
    return module.dcnv3(value, offset, mask, **KERNEL, groups=GROUPS, offset_scale=1.0, **options)


def ms_deform_attn(value, locations, weights, run="atomics"):
    module, options = RUNS[run]
    return module.ms_deform_attn(value, SHAPES, locations, weights, **options)


def displacements(kind, rng, shape):
    """In pixels: from the kernel grid, or from anywhere on a level of deformable attention."""
    return {
        "small": lambda: rng.uniform(-0.3, 0.3, shape),
        "large": lambda: rng.uniform(-1e4, 1e4, shape),
        "some far": lambda: rng.choice([-1e30, -20, 0.4, 1e6, 1e30], shape),
        "integer": lambda: rng.integers(-3, 4, shape),
        "half": lambda: rng.integers(-7, 8, shape) / 2,
    }[kind]()


KINDS = ("small", "large", "some far", "integer", "half")


def dcnv3_arguments(kind, batch=2, depth=5, seed=0):
    """value, offset, mask and a cotangent; groups of five channels are no power of two."""
    rng = np.random.default_rng(seed)
    image = (batch, *HW, GROUPS * depth)
    arrays = (
        rng.standard_normal(image),
        displacements(kind, rng, (batch, *HW, GROUPS * 18)),
        rng.uniform(size=(batch, *HW, GROUPS * 9)),
        rng.standard_normal(image),
    )
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def ms_deform_attn_arguments(kind, batch=2, depth=4, queries=7, seed=0):
    """value, sampling locations, attention weights and a cotangent."""
    rng = np.random.default_rng(seed)
    size = np.array([(width, height) for height, width in SHAPES])[:, None]  # [levels, 1, (x, y)]
    sampled = (batch, queries, HEADS, len(SHAPES), 4)
    pixel = rng.integers(-1, size + 1, (*sampled, 2)) + displacements(kind, rng, (*sampled, 2))
    arrays = (
        rng.standard_normal((batch, sum(h * w for h, w in SHAPES), HEADS, depth)),
        (pixel + 0.5) / size,
        rng.uniform(size=sampled),
        rng.standard_normal((batch, queries, HEADS * depth)),
    )
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


OPERATORS = {"dcnv3": (dcnv3, dcnv3_arguments)}
OPERATORS["ms_deform_attn"] = (ms_deform_attn, ms_deform_attn_arguments)
operators = pytest.mark.parametrize(("operator", "arguments"), OPERATORS.values(), ids=OPERATORS)


@functools.cache
def with_gradients(operator, **options):
    """A compiled function of the arguments: output and three gradients."""

    def run(*arguments):
        *inputs, cotangent = arguments
        output, transpose = jax.vjp(functools.partial(operator, **options), *inputs)
        return output, *transpose(cotangent)

    return jax.jit(run)


def check(results, expected):
    for i, (result, array) in enumerate(zip(results, expected, strict=True)):
        assert relative_error(result, array) < (GRADIENTS if i else VALUES), i


def check_recording(operator, recording, names, output):
    inputs = [recording[f"inputs/{name}"] for name in names]
    results = list(with_gradients(operator)(*inputs, recording[f"cotangents/{output}"]))
    gradients = recording.group("grads/inputs/") | recording.group("grads_cuda/inputs/")
    expected = [recording[f"outputs/{output}"], *(gradients[name] for name in names)]
    if "kink" in recording:
        # On a pixel centre the recorded location gradient depends on how the original rounded.
        results[2], expected[2] = (
            np.where(recording["kink"][..., None], 0, array) for array in (results[2], expected[2])
        )
    check(results, expected)


@pytest.mark.reference
@pytest.mark.parametrize(
    "path",
    [f for f in recordings("internimage/modules") if f.stem.startswith("dcnv3_core")],
    ids=lambda path: path.stem,
)
def test_dcnv3_equals_the_recorded_operator(path):
    recording = Recording(path)
    hparams = recording.hparams
    operator = functools.partial(
        gpu.dcnv3,
        kernel_size=hparams["kernel"],
        stride=hparams["stride"],
        padding=hparams["pad"],
        dilation=hparams["dilation"],
        groups=hparams["group"],
        offset_scale=hparams["offset_scale"],
        interpret=True,
    )
    check_recording(operator, recording, ("input", "offset", "mask"), "output")


@pytest.mark.reference
@pytest.mark.parametrize(
    "path",
    [f for f in recordings("vit_adapter/modules") if f.stem.startswith("ms_deform_attn_core")],
    ids=lambda path: path.stem,
)
def test_ms_deform_attn_equals_the_recorded_operator(path):
    recording = Recording(path)
    shapes = tuple(map(tuple, recording.json("meta")["spatial_shapes"]))

    def operator(value, locations, weights):
        return gpu.ms_deform_attn(value, shapes, locations, weights, interpret=True)

    names = ("value", "sampling_locations", "attention_weights")
    check_recording(operator, recording, names, "out")


@operators
@pytest.mark.parametrize("run", ["atomics", "deterministic"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition_for_any_displacement(operator, arguments, run, kind):
    inputs = arguments(kind)
    expected = with_gradients(operator, run="reference")(*inputs)
    check(with_gradients(operator, run=run)(*inputs), expected)


@operators
def test_vmap_equals_a_loop(operator, arguments):
    cases = [arguments("small", seed=seed) for seed in range(2)]
    stacked = jax.vmap(with_gradients(operator))(*map(jnp.stack, zip(*cases, strict=True)))
    for i, case in enumerate(cases):
        expected = with_gradients(operator, run="reference")(*case)
        check([result[i] for result in stacked], expected)


@operators
def test_rematerialised_and_used_twice(operator, arguments):
    """Twice on the same value: the second gradient must not land in the buffer of the first."""

    @functools.cache
    def twice(run):
        once = jax.checkpoint(functools.partial(operator, run=run))
        return lambda value, place, weight: (
            once(value, place, weight) + 2 * once(value, place + 0.1, weight**2)
        )

    inputs = arguments("small")
    expected = with_gradients(twice("reference"))(*inputs)
    check(with_gradients(twice("atomics"))(*inputs), expected)


@operators
@pytest.mark.parametrize("run", ["atomics", "deterministic"])
def test_bfloat16_rounds_the_values_but_not_the_coordinates(operator, arguments, run):
    value, place, weight, cotangent = arguments("small")
    value, cotangent = (x.astype(jnp.bfloat16) for x in (value, cotangent))
    results = with_gradients(operator, run=run)(value, place, weight, cotangent)
    value, cotangent = (x.astype(jnp.float32) for x in (value, cotangent))
    exact = with_gradients(operator, run="reference")(value, place, weight, cotangent)
    assert [x.dtype for x in results] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    for result, expected in zip(results, exact, strict=True):
        assert relative_error(result.astype(jnp.float32), expected) < 2**-8


@operators
def test_an_empty_batch_has_empty_results(operator, arguments):
    inputs = arguments("small", batch=0)
    results = with_gradients(operator)(*inputs)
    shapes = [x.shape for x in results]
    assert shapes == [inputs[-1].shape, *(x.shape for x in inputs[:3])]


def test_no_queries_have_no_gradient():
    inputs = ms_deform_attn_arguments("small", queries=0)
    assert not np.any(with_gradients(ms_deform_attn)(*inputs)[1])


@pytest.mark.parametrize("outside", [np.nan, np.inf])
def test_reads_no_pixel_that_has_no_weight(outside):
    """Points outside the image must not meet what stands at its border."""
    value, _, weight, cotangent = ms_deform_attn_arguments("small")
    locations = jnp.full((*weight.shape, 2), 1.9)
    results = with_gradients(ms_deform_attn)(
        jnp.full_like(value, outside), locations, weight, cotangent
    )
    assert not any(np.any(result) for result in results)


# Lowering

DCNV3 = {  # n, h, w, groups, channels of a group
    "T 128x256": (2, 128, 256, 4, 16),
    "T 16x32": (2, 16, 32, 32, 16),
    "L 128x256": (2, 128, 256, 10, 16),
    "H 224x224": (1, 224, 224, 10, 32),
}
PYRAMID = ((112, 112), (56, 56), (28, 28))
PYRAMID_PIXELS = sum(height * width for height, width in PYRAMID)
MS_DEFORM_ATTN = {  # queries, levels, heads
    "injector": (56 * 56, PYRAMID, 16),
    "extractor": (PYRAMID_PIXELS, ((56, 56),), 16),
    "pixel decoder": (PYRAMID_PIXELS, PYRAMID, 32),
}


def without_a_device():
    """Where jax can describe a GPU that is not there, it wants to be told (0.11 and later)."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(
        device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu"
    )
    mesh = jax.sharding.AbstractMesh(
        (1,), ("x",), (jax.sharding.AxisType.Explicit,), abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)


def lowered(function, *shapes):
    with without_a_device():
        traced = jax.jit(function).trace(*shapes)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def check_lowering(name, operator, *shapes):
    def kernels(text):
        names = set(re.findall(r'name = "(jaxseg_\w+)"', text))
        assert text.count("__gpu$xla.gpu.triton") >= len(names)
        return {kernel.removeprefix(f"jaxseg_{name}_") for kernel in names}

    def loss(deterministic, *inputs):
        return operator(*inputs, deterministic=deterministic).astype(jnp.float32).sum()

    forward = lowered(operator, *shapes)
    assert kernels(forward) == {"forward"}
    assert "gather" not in forward

    gradient = jax.grad(functools.partial(loss, False), argnums=(0, 1, 2))
    text = lowered(gradient, *shapes)
    assert kernels(text) >= {"points_gradient", "value_gradient"}
    assert "gather" not in text
    assert "scatter" not in text
    assert "atomic_rmw" in text

    gradient = jax.grad(functools.partial(loss, True), argnums=(0, 1, 2))
    text = lowered(gradient, *shapes)
    assert kernels(text) >= {"points_gradient", "value_gradient_in_order"}
    assert "scatter" not in text
    assert "atomic_rmw" not in text


types = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


@types
@pytest.mark.parametrize("shape", DCNV3.values(), ids=DCNV3)
def test_dcnv3_lowers_at_full_size(shape, dtype):
    *image, groups, depth = shape
    operator = functools.partial(gpu.dcnv3, **KERNEL, groups=groups, offset_scale=1.0)
    check_lowering(
        "dcnv3",
        operator,
        jax.ShapeDtypeStruct((*image, groups * depth), dtype),
        jax.ShapeDtypeStruct((*image, groups * 18), jnp.float32),
        jax.ShapeDtypeStruct((*image, groups * 9), jnp.float32),
    )


@types
@pytest.mark.parametrize("shape", MS_DEFORM_ATTN.values(), ids=MS_DEFORM_ATTN)
def test_ms_deform_attn_lowers_at_full_size(shape, dtype):
    queries, levels, heads = shape

    def operator(value, locations, weights, deterministic=False):
        return gpu.ms_deform_attn(value, levels, locations, weights, deterministic=deterministic)

    pixels = sum(height * width for height, width in levels)
    sampled = (1, queries, heads, len(levels), 4)
    check_lowering(
        "ms_deform_attn",
        operator,
        jax.ShapeDtypeStruct((1, pixels, heads, 32), dtype),
        jax.ShapeDtypeStruct((*sampled, 2), jnp.float32),
        jax.ShapeDtypeStruct(sampled, jnp.float32),
    )


@operators
def test_lowers_under_vmap(operator, arguments):
    inputs = [jnp.stack([x] * 3) for x in arguments("small")]
    text = lowered(jax.vmap(with_gradients(operator, run="on a GPU")), *inputs)
    assert text.count("__gpu$xla.gpu.triton") == 3
