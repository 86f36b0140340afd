"""DCNv3's kernels for TPU: interpreted here, against the recordings and the definition."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT
from reference_files import Recording, recordings, relative_error

from pallas_kernels import reference, tpu_dcnv3

# Float32 rounding of sums in another order; the originals differ as much from their own float64.
VALUES, GRADIENTS = 1e-5, 1e-4

GEOMETRY = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}


def recorded_geometry(hparams):
    names = {"kernel_size": "kernel", "stride": "stride", "padding": "pad", "dilation": "dilation"}
    return {name: hparams[recorded] for name, recorded in names.items()}


FILES = [f for f in recordings("internimage/modules") if f.stem.startswith("dcnv3_core")]
FILES = [f for f in FILES if recorded_geometry(Recording(f).hparams) == GEOMETRY]
# Interpreted kernels take long to compile: one every time, the others in the full run.
FILES = [pytest.param(f, id=f.stem, marks=[pytest.mark.full] * (f != FILES[0])) for f in FILES]


def operator(implementation, groups, offset_scale=1.0, geometry=GEOMETRY):
    """The operator as a function of its three arrays."""
    return functools.partial(
        implementation.dcnv3, groups=groups, offset_scale=offset_scale, **geometry
    )


def with_gradients(run):
    """Compiled: (value, offset, mask, cotangent) to the output and the three gradients."""

    def outcome(*arguments):
        *inputs, cotangent = arguments
        output, transpose = jax.vjp(run, *inputs)
        return output, *transpose(cotangent)

    return jax.jit(outcome)


# Most of a test's time is compilation: tests of two groups share what is compiled for equal shapes.
kernel = with_gradients(operator(tpu_dcnv3, groups=2))
definition = with_gradients(operator(reference, groups=2))


def arguments(n, height, width, groups, channels, spread, seed=0):
    """value, offset, mask and a cotangent; no coordinate within 0.05 of a kink."""
    rng = np.random.default_rng(seed)
    image = (n, height, width)
    offset = rng.uniform(-spread, spread, (*image, groups * 18))
    offset = np.floor(offset) + rng.uniform(0.05, 0.95, offset.shape)
    arrays = (
        rng.standard_normal((*image, groups * channels)),
        offset,
        rng.uniform(size=(*image, groups * 9)),
        rng.standard_normal((*image, groups * channels)),
    )
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def check(results, expected):
    output, *gradients = results
    expected_output, *expected_gradients = expected
    assert relative_error(output, expected_output) < VALUES
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, other) < GRADIENTS


@pytest.mark.reference
@pytest.mark.parametrize("path", FILES)
def test_equals_the_recorded_operator(path):
    recording = Recording(path)
    hparams = recording.hparams
    inputs = [recording[f"inputs/{name}"] for name in ("input", "offset", "mask")]
    run = operator(tpu_dcnv3, hparams["group"], hparams["offset_scale"])
    gradients = recording.group("grads/inputs/") | recording.group("grads_cuda/inputs/")
    expected = [gradients[name] for name in ("input", "offset", "mask")]
    results = with_gradients(run)(*inputs, recording["cotangents/output"])
    check(results, [recording["outputs/output"], *expected])


SHAPES = {
    "odd sizes": (2, 5, 7, 2, 3),
    "wider than a register": (1, 2, 130, 2, 2),
    "two blocks": (5, 2, 65, 2, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_definition(shape):
    inputs = arguments(*shape, spread=3)
    check(kernel(*inputs), definition(*inputs))


def test_an_empty_batch_is_an_empty_result():
    results = kernel(*arguments(0, 2, 3, 2, 1, spread=1))
    assert [x.shape[0] for x in results] == [0] * 4


SMALL = (1, 5, 7, 2, 2)


@pytest.mark.parametrize("far", [-1e30, -1e4, 8.0, 1e4, 1e30])
def test_points_far_outside_sample_zeros_and_have_no_gradient(far):
    value, offset, mask, cotangent = arguments(*SMALL, spread=2)
    offset = offset.at[:, 1::2].set(far)  # every other row
    results = kernel(value, offset, mask, cotangent)
    check(results, definition(value, offset, mask, cotangent))
    assert not jnp.any(results[0][:, 1::2])
    assert not jnp.any(results[2][:, 1::2])


def test_at_whole_numbers_the_gradient_is_the_right_sided_difference():
    value, offset, mask, cotangent = arguments(*SMALL, spread=3)
    whole = jnp.round(offset)
    output, _, gradient, _ = kernel(value, whole, mask, cotangent)
    # Up to the next whole number the operator is linear in x and in y.
    for index in [(0, 0, 0, 0), (0, 1, 2, 7), (0, 2, 4, 20), (0, 3, 1, 35)]:
        moved, *_ = kernel(value, whole.at[index].add(0.5), mask, cotangent)
        change = 2 * jnp.sum((moved - output) * cotangent)
        assert abs(gradient[index] - change) < 1e-4
    check(kernel(value, whole, mask, cotangent), definition(value, whole, mask, cotangent))


def test_bfloat16_rounds_the_values_but_not_the_coordinates():
    value, offset, mask, cotangent = arguments(1, 3, 257, 2, 1, spread=2)
    value, cotangent = (x.astype(jnp.bfloat16) for x in (value, cotangent))
    results = kernel(value, offset, mask, cotangent)
    exact = definition(value.astype(jnp.float32), offset, mask, cotangent.astype(jnp.float32))
    assert [x.dtype for x in results] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    for result, expected in zip(results[:2], exact[:2], strict=True):
        assert relative_error(result.astype(jnp.float32), expected) < 2**-8
    for result, expected in zip(results[2:], exact[2:], strict=True):
        assert relative_error(result, expected) < GRADIENTS


def test_channels_in_several_passes_equal_the_definition(monkeypatch):
    inputs = arguments(1, 4, 5, 2, 4, spread=2)
    one_channel = 5 * 8 * 128 * (4 + 4) * 2  # value and gradient, 5 rows, in two buffers
    monkeypatch.setattr(tpu_dcnv3, "PLANE_BYTES", 2 * one_channel)
    check(with_gradients(operator(tpu_dcnv3, 2))(*inputs), definition(*inputs))


def test_refuses_images_larger_than_the_memory():
    inputs = [jax.ShapeDtypeStruct((1, 2048, 2048, c), jnp.float32) for c in (16, 18, 9, 16)]
    with pytest.raises(ValueError, match="eight images of this size takes 134217728 bytes"):
        jax.eval_shape(with_gradients(operator(tpu_dcnv3, 1)), *inputs)


def test_vmap_equals_a_loop():
    cases = [arguments(*SMALL, spread=spread, seed=spread) for spread in (1, 4)]
    stacked = jax.vmap(kernel)(*map(jnp.stack, zip(*cases, strict=True)))
    for i, case in enumerate(cases):
        check([result[i] for result in stacked], definition(*case))


def test_used_twice_and_rematerialised():
    def twice(run):
        return lambda value, offset, mask: run(run(value, offset, mask), offset, mask)

    inputs = arguments(1, 4, 5, 2, 1, spread=2)
    results = with_gradients(twice(jax.checkpoint(operator(tpu_dcnv3, 2))))(*inputs)
    check(results, with_gradients(twice(operator(reference, 2)))(*inputs))


@pytest.mark.parametrize("change", [{"kernel_size": 5}, {"stride": 2}, {"dilation": 2}])
def test_refuses_another_geometry(change):
    *inputs, _ = arguments(1, 4, 5, 1, 2, spread=1)
    with pytest.raises(ValueError, match=r"one grid of pixels.*take implementation='xla'"):
        operator(tpu_dcnv3, 1, geometry=GEOMETRY | change)(*inputs)


def test_lowers_to_two_named_kernels_for_tpu():
    *inputs, _ = arguments(1, 4, 5, 1, 2, spread=1)

    def loss(*inputs):
        return operator(tpu_dcnv3, 1)(*inputs).sum()

    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(*inputs)
    text = lowered.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2
    assert "dcnv3_forward" in text
    assert "dcnv3_backward" in text


@pytest.mark.full
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_compiles_for_tpu(topology):
    """InternImage-T and H in training at 512 × 1024, T at 1024 × 2048; no TPU is needed."""
    pytest.importorskip("libtpu", reason="the compiler for TPU is not installed")
    shapes = ["2,128,256,4,16", "2,16,32,32,16", "2,128,256,10,32", "1,256,512,4,16"]
    program = ROOT / "tests" / "compile_for_tpu.py"
    done = subprocess.run(
        [sys.executable, program, topology, "bfloat16", *shapes],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(shapes)
