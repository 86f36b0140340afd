"""DCNv3: recorded numbers, and one set of facts for all implementations.

Kernels are interpreted where they cannot run. What only those of one platform could get wrong is in
test_gpu_kernels.py
and test_tpu_dcnv3.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dcnv3
from pallas_kernels.gpu import operators as gpu
from support import operators
from support.operators import INTERPRET, with_gradients
from support.reference_files import Recording, recordings

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

IMPLEMENTATIONS = {
    "reference": functools.partial(dcnv3, implementation="reference"),
    "xla": functools.partial(dcnv3, implementation="xla"),
    "gpu": functools.partial(gpu.dcnv3, interpret=INTERPRET),
    "gpu deterministic": functools.partial(gpu.dcnv3, interpret=INTERPRET, deterministic=True),
    "tpu": functools.partial(dcnv3, implementation="tpu"),
}
GEOMETRY = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
GROUPS, SCALE = 2, 2.0  # a power of two: whole pixels stay whole

implementations = operators.over(IMPLEMENTATIONS)
optimized = operators.over([*IMPLEMENTATIONS][1:])


@functools.cache
def operator(implementation):
    """The operator as a function of its three arrays."""
    return functools.partial(
        IMPLEMENTATIONS[implementation], **GEOMETRY, groups=GROUPS, offset_scale=SCALE
    )


def definition(*inputs):
    """Output and gradients."""
    return with_gradients(operator("reference"))(*inputs)


def arguments(kind, batch=2, hw=(3, 5), depth=3, seed=0):
    """value, offset, mask and a cotangent; odd sizes, and three channels a group."""
    rng = np.random.default_rng(seed)
    image = (batch, *hw, GROUPS * depth)
    arrays = (
        rng.standard_normal(image),
        operators.displacements(kind, rng, (batch, *hw, GROUPS * 18)) / SCALE,
        rng.uniform(size=(batch, *hw, GROUPS * 9)),
        rng.standard_normal(image),
    )
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def recorded(recording):
    """Static arguments of a recorded call."""
    names = {"kernel_size": "kernel", "stride": "stride", "padding": "pad", "dilation": "dilation"}
    names |= {"groups": "group", "offset_scale": "offset_scale"}
    return {name: recording.hparams[key] for name, key in names.items()}


FILES = [f for f in recordings("internimage/modules") if f.stem.startswith("dcnv3_core")]
GEOMETRIES = {f: [recorded(Recording(f))[name] for name in GEOMETRY] for f in FILES}
FOR_TPU = [f for f in FILES if GEOMETRIES[f] == [*GEOMETRY.values()]]
ONE_OF_EACH_GEOMETRY = {tuple(geometry): f for f, geometry in GEOMETRIES.items()}.values()
CASES = operators.recorded_cases(
    FILES,
    {"reference": FILES, "xla": FILES, "gpu": ONE_OF_EACH_GEOMETRY, "gpu deterministic": ()},
)
CASES += operators.recorded_cases(FOR_TPU, {"tpu": FOR_TPU[:1]})


@pytest.mark.reference
@pytest.mark.parametrize(("path", "implementation"), CASES)
def test_equals_the_recorded_operator(path, implementation):
    recording = Recording(path)
    run = functools.partial(IMPLEMENTATIONS[implementation], **recorded(recording))
    operators.check_recording(run, recording, ("input", "offset", "mask"), "output")


@pytest.mark.reference
@pytest.mark.parametrize("path", sorted(set(FILES) - set(FOR_TPU)), ids=lambda path: path.stem)
def test_on_tpu_another_geometry_is_refused(path):
    recording = Recording(path)
    inputs = [recording[f"inputs/{name}"] for name in ("input", "offset", "mask")]
    with pytest.raises(ValueError, match=r"one grid of pixels.*take implementation='xla'"):
        IMPLEMENTATIONS["tpu"](*inputs, **recorded(recording))


@optimized
@pytest.mark.parametrize("kind", operators.KINDS)
def test_equals_the_definition_for_any_offset(implementation, kind):
    inputs = arguments(kind)
    operators.check(with_gradients(operator(implementation))(*inputs), definition(*inputs))


@implementations
def test_gradients_are_the_finite_differences(implementation):
    operators.check_central_differences(
        operator(implementation), arguments("between"), pixel=1 / SCALE
    )


@implementations
def test_at_whole_pixels_the_gradient_is_the_right_sided_difference(implementation):
    operators.check_right_sided_differences(
        operator(implementation), arguments("integer"), pixel=1 / SCALE
    )


@implementations
@pytest.mark.parametrize("far", [-1e30, -1e4, 8.0, 1e4, 1e30])
def test_points_far_outside_sample_zeros_and_have_no_gradient(implementation, far):
    value, offset, mask, cotangent = arguments("between")
    offset = offset.at[:, 1::2].set(far)  # every other row
    results = with_gradients(operator(implementation))(value, offset, mask, cotangent)
    operators.check(results, definition(value, offset, mask, cotangent))
    output, value_gradient, *gradients = results
    assert jnp.all(jnp.isfinite(value_gradient))
    for result in (output, *gradients):
        assert not jnp.any(result[:, 1::2])


@pytest.mark.parametrize("implementation", ["gpu", "gpu deterministic"])
@pytest.mark.parametrize("outside", [np.nan, np.inf])
def test_reads_no_pixel_that_has_no_weight(implementation, outside):
    """Points outside the image do not meet what stands at its border."""
    value, offset, mask, cotangent = arguments("small")
    results = with_gradients(operator(implementation))(
        jnp.full_like(value, outside), jnp.full_like(offset, 8.0), mask, cotangent
    )
    assert not any(np.any(result) for result in results)


@operators.over(IMPLEMENTATIONS, slow=["gpu deterministic"])
def test_vmap_equals_a_loop(implementation):
    operators.check_vmap(
        operator(implementation), [arguments("small", seed=seed) for seed in range(2)]
    )


@functools.cache
def twice(once):
    """On the same value, and on what it gave the first time."""

    def run(value, offset, mask):
        first = once(value, offset, mask)
        return first + once(value + first, offset + 0.1, mask**2)

    return run


@operators.over(IMPLEMENTATIONS, slow=["reference", "gpu deterministic"])
def test_rematerialized_and_used_twice(implementation):
    """The second gradient must not land in the buffer of the first."""
    inputs = arguments("small")
    rematerialized = twice(jax.checkpoint(operator(implementation)))
    expected = with_gradients(twice(operator("reference")))(*inputs)
    operators.check(with_gradients(rematerialized)(*inputs), expected)


@implementations
def test_bfloat16_rounds_the_values_but_not_the_coordinates(implementation):
    """Which take more than its 8 bits; for TPU that is several registers wide, and two blocks."""
    inputs = arguments("between", batch=5, hw=(2, 130), depth=1)
    tolerances = operators.ROUNDED_ONCE
    if implementation == "reference":  # rounds every sum over four pixels and nine points
        tolerances = [2**-6] * 4
    run, exact = operator(implementation), operator("reference")
    operators.check_bfloat16(run, exact, inputs, tolerances)


@implementations
def test_an_empty_batch_has_empty_results(implementation):
    inputs = arguments("small", batch=0)
    shapes = [x.shape for x in with_gradients(operator(implementation))(*inputs)]
    assert shapes == [inputs[-1].shape, *(x.shape for x in inputs[:3])]


@operators.over(IMPLEMENTATIONS, slow=["reference", "gpu deterministic", "tpu"])
def test_split_over_eight_devices_equals_one_device(implementation):
    shares = [arguments("between", seed=seed) for seed in range(8)]
    operators.check_split_over_eight_devices(operator(implementation), shares)


@pytest.mark.usefixtures("unchecked_types")
def test_refuses_shapes_that_do_not_belong_together():
    run = operator("reference")
    value, offset, mask, _ = arguments("small")
    with pytest.raises(ValueError, match=r"offset \(2, 3, 5, 18\), expected \(2, 3, 5, 36\)"):
        run(value, offset[..., :18], mask)
    with pytest.raises(ValueError, match=r"mask \(2, 2, 5, 18\), expected \(2, 3, 5, 18\)"):
        run(value, offset, mask[:, :2])
    with pytest.raises(ValueError, match=r"5 channels of value \(2, 3, 5, 5\) do not divide"):
        run(value[..., :5], offset, mask)
