"""The 3×3 convolution of TPUs, interpreted, against its definition; and where it runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh, map_over_batch
from pallas_kernels import reference
from pallas_kernels.tpu import conv3x3

# Sums of bfloat16 products in float32, rounded once; the weights' gradient is not rounded.
ROUNDED = 2**-8
SHAPES = {
    "blocks of one row": ((2, 3, 512, 128), 128),
    "several rows in a block": ((2, 6, 16, 128), 256),
    "one block": ((1, 5, 32, 256), 128),
    "a prime number of rows": ((1, 37, 16, 128), 128),
}


def arrays(shape, features, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    kernel = rng.standard_normal((3, 3, shape[-1], features)) / np.sqrt(9 * shape[-1])
    cotangent = rng.standard_normal((*shape[:3], features))
    return [jnp.asarray(array, jnp.bfloat16) for array in (x, kernel, cotangent)]


def wide(array):
    return np.asarray(array, np.float32)


def check(found, expected, tolerance):
    assert found.dtype == jnp.bfloat16
    error = np.abs(wide(found) - wide(expected)).max()
    assert error <= tolerance * np.abs(wide(expected)).max()


@pytest.mark.parametrize(("shape", "features"), SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_the_definition(shape, features):
    x, kernel, cotangent = arrays(shape, features)
    assert conv3x3.fits(shape, features, x.dtype)
    output, transpose = jax.vjp(conv3x3.conv3x3, x, kernel)
    expected, exact = jax.vjp(
        reference.conv3x3, *(array.astype(jnp.float32) for array in (x, kernel))
    )
    check(output, expected, ROUNDED)
    for found, wanted in zip(
        transpose(cotangent), exact(cotangent.astype(jnp.float32)), strict=True
    ):
        check(found, wanted, ROUNDED)


def test_under_remat_and_over_a_further_axis_it_is_the_same():
    x, kernel, _ = arrays((3, 6, 16, 128), 128)

    def loss(x, kernel):
        return jnp.sum(conv3x3.conv3x3(x, kernel).astype(jnp.float32) ** 2)

    expected = jax.grad(loss, argnums=(0, 1))(x, kernel)
    recomputed = jax.grad(jax.checkpoint(loss), argnums=(0, 1))(x, kernel)
    jax.tree.map(np.testing.assert_array_equal, recomputed, expected)
    mapped = jax.vmap(conv3x3.conv3x3, in_axes=(0, None))(x[:, None], kernel)
    np.testing.assert_array_equal(mapped[:, 0], conv3x3.conv3x3(x, kernel))


def test_split_over_eight_devices_it_is_the_same():
    x, kernel, _ = arrays((8, 4, 16, 128), 128)

    def loss(x, kernel):
        operator = functools.partial(pallas_kernels.conv3x3, implementation="tpu")
        output = map_over_batch(operator, num_replicated=1)(x, kernel)
        return jnp.sum(output.astype(jnp.float32) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    expected = gradients(x, kernel)
    mesh = make_mesh({"data": 8, "fsdp": 1})
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.NamedSharding(mesh, BATCH_SPEC))
        found = gradients(split, kernel)
    np.testing.assert_array_equal(wide(found[0]), wide(expected[0]))
    check(found[1], expected[1], 4 * ROUNDED)  # the parts of eight devices are rounded, too


@pytest.mark.parametrize(
    ("shape", "features", "dtype"),
    [
        ((1, 8, 16, 64), 128, jnp.bfloat16),
        ((1, 8, 16, 128), 64, jnp.bfloat16),
        ((1, 8, 20, 128), 128, jnp.bfloat16),
        ((1, 8, 16, 128), 128, jnp.float32),
        ((1, 8, 16, 2560), 2560, jnp.bfloat16),
    ],
    ids=["channels", "features", "columns", "float32", "memory"],
)
def test_other_calls_are_left_to_xla(shape, features, dtype):
    assert not pallas_kernels.conv3x3_has_kernel(shape, features, dtype, "tpu")
    if shape[-1] > 128:
        return
    x, kernel = (jnp.ones(size, dtype) for size in (shape, (3, 3, shape[-1], features)))
    found = pallas_kernels.conv3x3(x, kernel, implementation="tpu")
    np.testing.assert_array_equal(found, pallas_kernels.conv3x3(x, kernel, implementation="xla"))


def test_no_kernel_runs_where_none_is_asked_for():
    shape = (1, 8, 16, 128)
    assert pallas_kernels.conv3x3_has_kernel(shape, 128, jnp.bfloat16, "tpu")
    assert not pallas_kernels.conv3x3_has_kernel(shape, 128, jnp.bfloat16, "xla")
    assert not pallas_kernels.conv3x3_has_kernel(shape, 128, jnp.bfloat16)  # this is a CPU


def test_channels_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"conv3x3: 128 channels of x .*, 64 of the kernel"):
        pallas_kernels.conv3x3(jnp.zeros((1, 8, 16, 128)), jnp.zeros((3, 3, 64, 128)))
