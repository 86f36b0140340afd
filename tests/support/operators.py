"""How tests run a deformable operator, and what they compare it with.

An operator here is a function of its three arrays: the value, places (offsets or locations) and
weights. The fourth of its *arguments* is a cotangent of the output.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh, map_over_batch
from support.reference_files import Recording, relative_error

# Float32 rounding of sums in another order; the originals differ as much from their own float64.
VALUES, GRADIENTS = 1e-5, 1e-4

# Kernels for GPUs run on a GPU; those for TPUs find out by themselves.
INTERPRET = jax.default_backend() != "gpu"

KINDS = ("small", "between", "large", "far", "integer", "half")


def displacements(kind, rng, shape):
    """In pixels from whole ones; "between" keeps 0.1 from every kink, which whole ones are."""
    return {
        "small": lambda: rng.uniform(-0.3, 0.3, shape),
        "between": lambda: rng.integers(-3, 3, shape) + rng.uniform(0.1, 0.9, shape),
        "large": lambda: rng.uniform(-1e4, 1e4, shape),
        "far": lambda: rng.choice([-1e30, -20, 0.4, 1e6, 1e30], shape),
        "integer": lambda: rng.integers(-3, 4, shape),
        "half": lambda: rng.integers(-7, 8, shape) / 2,
    }[kind]()


@functools.cache
def with_gradients(operator):
    """The arguments to the output and the three gradients; compiled once for equal shapes."""

    def run(*arguments):
        *inputs, cotangent = arguments
        output, transpose = jax.vjp(operator, *inputs)
        return output, *transpose(cotangent)

    return jax.jit(run)


def check(results, expected):
    """Of an output and three gradients."""
    for i, (result, array) in enumerate(zip(results, expected, strict=True)):
        assert relative_error(result, array) < (GRADIENTS if i else VALUES), i


def over(implementations, slow=()):
    """Parametrizes a test; with the slow implementations it is for the full run."""
    return pytest.mark.parametrize(
        "implementation",
        [pytest.param(name, marks=[pytest.mark.full] * (name in slow)) for name in implementations],
    )


def recorded_cases(paths, quick):
    """Recordings with implementations; those not among its `quick` ones are for the full run."""
    return [
        pytest.param(
            path,
            implementation,
            id=f"{path.stem}-{implementation}",
            marks=[pytest.mark.full] * (path not in chosen),
        )
        for path in paths
        for implementation, chosen in quick.items()
    ]


def check_recording(operator, recording: Recording, names, output):
    inputs = [recording[f"inputs/{name}"] for name in names]
    results = list(with_gradients(operator)(*inputs, recording[f"cotangents/{output}"]))
    gradients = recording.group("grads/inputs/") | recording.group("grads_cuda/inputs/")
    expected = [recording[f"outputs/{output}"], *(gradients[name] for name in names)]
    if "kink" in recording:
        # On a pixel center the recorded location gradient depends on how the original rounded.
        results[2], expected[2] = (
            np.where(recording["kink"][..., None], 0, array) for array in (results[2], expected[2])
        )
    check(results, expected)


def check_difference(operator, arguments, i, ahead, behind=0.0):
    """Between two steps from argument `i` the output changes as the gradient says.

    The sums are in float64, so that only the rounding of the float32 outputs remains.
    """
    run = with_gradients(operator)
    ends = [arguments[i] + jnp.asarray(step, jnp.float32) for step in (ahead, -behind)]
    outputs = [run(*arguments[:i], end, *arguments[i + 1 :])[0] for end in ends]
    after, before, there, here, cotangent, gradient = (
        np.asarray(x, np.float64) for x in (*outputs, *ends, arguments[-1], run(*arguments)[1 + i])
    )
    shares = gradient * (there - here)
    error = np.sum((after - before) * cotangent) - np.sum(shares)
    assert abs(error) < GRADIENTS * np.sum(np.abs(shares)), i


def check_central_differences(operator, arguments, pixel):
    """In random directions; `pixel` is what moves a place by one.

    Along a line without a kink the operator is linear in the value and in the weights, and
    quadratic in the places. So central differences are exact for any step that meets no kink:
    large ones leave the least rounding. The places are 0.1 of a pixel from all kinks.
    """
    rng = np.random.default_rng(1)
    for i, step in enumerate((1.0, 0.08 * pixel, 1.0)):
        for _ in range(2):
            direction = step * rng.choice([-1.0, 1.0], arguments[i].shape)
            check_difference(operator, arguments, i, direction, direction)


def check_right_sided_differences(operator, arguments, pixel):
    """From whole pixels, along x and along y, where up to the next pixel the operator is linear."""
    rng = np.random.default_rng(1)
    shape = arguments[1].shape
    for direction in ((1.0, 0.0), (0.0, 1.0)):
        for _ in range(2):
            chosen = rng.integers(0, 2, (arguments[1].size // 2, 1)) * np.array(direction)
            check_difference(operator, arguments, 1, 0.5 * pixel * chosen.reshape(shape))


def check_vmap(operator, cases):
    """Equals a loop over the cases."""
    stacked = jax.vmap(with_gradients(operator))(*map(jnp.stack, zip(*cases, strict=True)))
    for i, case in enumerate(cases):
        check([result[i] for result in stacked], with_gradients(operator)(*case))


# Half a unit in the last place of the output; sums and coordinates are in float32.
ROUNDED_ONCE = (2**-8, 2**-8, GRADIENTS, GRADIENTS)


def check_bfloat16(operator, definition, arguments, tolerances=ROUNDED_ONCE):
    """With values in bfloat16; the rest stays in float32."""
    value, place, weight, cotangent = arguments
    value, cotangent = (x.astype(jnp.bfloat16) for x in (value, cotangent))
    results = with_gradients(operator)(value, place, weight, cotangent)
    value, cotangent = (x.astype(jnp.float32) for x in (value, cotangent))
    exact = with_gradients(definition)(value, place, weight, cotangent)
    assert [x.dtype for x in results] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    for result, expected, tolerance in zip(results, exact, tolerances, strict=True):
        assert relative_error(result.astype(jnp.float32), expected) < tolerance


def check_split_over_eight_devices(operator, shares):
    """Equals one device that takes the eight shares of a batch in turn."""
    mesh = make_mesh({"data": 2, "fsdp": 4})
    whole = [np.concatenate(parts) for parts in zip(*shares, strict=True)]
    whole = [jax.device_put(x, NamedSharding(mesh, BATCH_SPEC)) for x in whole]
    with jax.set_mesh(mesh):
        results = with_gradients(map_over_batch(operator))(*whole)
    expected = zip(*(with_gradients(operator)(*share) for share in shares), strict=True)
    for result, parts in zip(results, expected, strict=True):
        assert len(result.sharding.device_set) == 8
        assert relative_error(result, np.concatenate(parts)) < VALUES
