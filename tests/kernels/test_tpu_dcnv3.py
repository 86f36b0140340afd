"""DCNv3's kernels for TPU: interpreted on CPU, compiled for TPU.

What every implementation has to fulfil is in test_dcnv3.py; here is what only these kernels could
get wrong: passes over the channels, images that are too large, and their lowering.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from test_dcnv3 import GEOMETRY, GROUPS, SCALE, arguments, definition, operator

from pallas_kernels.tpu import dcnv3, planes
from support import operators
from support.operators import with_gradients

KERNEL = operator("tpu")


def test_channels_in_several_passes_equal_the_definition(monkeypatch):
    inputs = arguments("between", batch=1, hw=(4, 5), depth=4)
    one_channel = 4 * 8 * 128 * (4 + 4) * 2  # value and gradient, 4 rows, in two buffers
    monkeypatch.setattr(dcnv3, "PLANE_BYTES", 2 * one_channel)
    in_passes = functools.partial(dcnv3.dcnv3, **GEOMETRY, groups=GROUPS, offset_scale=SCALE)
    operators.check(with_gradients(in_passes)(*inputs), definition(*inputs))


def test_refuses_images_larger_than_the_memory():
    inputs = [
        jax.ShapeDtypeStruct((1, 2048, 2048, GROUPS * c), jnp.float32) for c in (16, 18, 9, 16)
    ]
    with pytest.raises(ValueError, match="eight images of this size takes 134217728 bytes"):
        jax.eval_shape(with_gradients(KERNEL), *inputs)


def test_lowers_to_two_named_kernels_for_tpu():
    lowered = with_gradients(KERNEL).trace(*arguments("small")).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    assert text.count("tpu_custom_call") == 2
    assert "dcnv3_forward" in text
    assert "dcnv3_backward" in text


@pytest.mark.parametrize(
    ("groups", "width", "padded", "shape"),
    [
        (4, 256, 8, (8, 256)),
        (40, 64, 48, (24, 128)),  # two groups side by side
        (80, 32, 96, (24, 128)),
        (5, 16, 8, (8, 128)),  # one register holds them
        (20, 40, 24, (8, 128)),
        (3, 100, 8, (8, 128)),
    ],
)
def test_planes_hold_every_group_once_in_whole_registers(groups, width, padded, shape):
    assert planes.padded_groups(groups, width) == padded
    assert planes.padded_groups(padded, width) == padded
    images = jnp.arange(2.0 * 3 * width * groups * 2).reshape(2, 3, width, groups, 2) + 1
    found = planes.to_planes(images)
    assert found.shape == (2, 3, 2, *shape)
    assert jnp.count_nonzero(found) == images.size
    assert jnp.array_equal(planes.from_planes(found, images.shape), images)
