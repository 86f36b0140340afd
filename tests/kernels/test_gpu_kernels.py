"""The GPU kernels as programs for CUDA, lowered without a GPU.

Their values and gradients are compared in test_dcnv3.py, test_ms_deform_attn.py and
test_attention.py.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gpu import attention
from pallas_kernels.gpu import operators as gpu
from pallas_kernels.relative_positions import table_rows
from support.absent_gpu import absent_gpu

# Jax says so from 0.11 on; `pallas_kernels.gpu.samples` is the only file that knows of Triton.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

KERNEL = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
DCNV3 = {  # n, h, w, groups, channels of a group
    "T 128x256": (2, 128, 256, 4, 16),
    "T 16x32": (2, 16, 32, 32, 16),
    "L 128x256": (2, 128, 256, 10, 16),
    "H 224x224": (1, 224, 224, 10, 32),
}
SELF_ATTENTION = {  # grid of patches, or tokens; heads
    "BEiT-L at 896": ((56, 56), 16),
    "BEiT-B at 640": ((40, 40), 12),
    "DeiT-B at 512": (1025, 12),
    "ViT-T at 512": (1025, 3),
}
PYRAMID = ((112, 112), (56, 56), (28, 28))
PYRAMID_PIXELS = sum(height * width for height, width in PYRAMID)
MS_DEFORM_ATTN = {  # queries, levels, heads
    "injector": (56 * 56, PYRAMID, 16),
    "extractor": (PYRAMID_PIXELS, ((56, 56),), 16),
    "pixel decoder": (PYRAMID_PIXELS, PYRAMID, 32),
}


def lowered(function, *shapes):
    with absent_gpu():
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


def dcnv3_call(n, height, width, groups, depth, dtype):
    """The operator as a function of its three arrays, and their shapes."""
    operator = functools.partial(gpu.dcnv3, **KERNEL, groups=groups, offset_scale=1.0)
    image = (n, height, width)
    return operator, (
        jax.ShapeDtypeStruct((*image, groups * depth), dtype),
        jax.ShapeDtypeStruct((*image, groups * 18), jnp.float32),
        jax.ShapeDtypeStruct((*image, groups * 9), jnp.float32),
    )


def ms_deform_attn_call(queries, levels, heads, dtype):
    def operator(value, locations, weights, deterministic=False):
        return gpu.ms_deform_attn(value, levels, locations, weights, deterministic=deterministic)

    pixels = sum(height * width for height, width in levels)
    sampled = (1, queries, heads, len(levels), 4)
    return operator, (
        jax.ShapeDtypeStruct((1, pixels, heads, 32), dtype),
        jax.ShapeDtypeStruct((*sampled, 2), jnp.float32),
        jax.ShapeDtypeStruct(sampled, jnp.float32),
    )


types = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


@types
@pytest.mark.parametrize("shape", DCNV3.values(), ids=DCNV3)
def test_dcnv3_lowers_at_full_size(shape, dtype):
    operator, shapes = dcnv3_call(*shape, dtype)
    check_lowering("dcnv3", operator, *shapes)


@types
@pytest.mark.parametrize("shape", MS_DEFORM_ATTN.values(), ids=MS_DEFORM_ATTN)
def test_ms_deform_attn_lowers_at_full_size(shape, dtype):
    operator, shapes = ms_deform_attn_call(*shape, dtype)
    check_lowering("ms_deform_attn", operator, *shapes)


CALLS = {
    "dcnv3": dcnv3_call(2, 5, 8, 3, 5, jnp.float32),  # five channels are no power of two
    "ms_deform_attn": ms_deform_attn_call(7, ((8, 4), (1, 1)), 3, jnp.float32),
}


@pytest.mark.parametrize(("operator", "shapes"), CALLS.values(), ids=CALLS)
def test_lowers_under_vmap(operator, shapes):
    def with_gradients(*inputs):
        output, transpose = jax.vjp(operator, *inputs)
        return output, transpose(output)

    stacked = (jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in shapes)
    text = lowered(jax.vmap(with_gradients), *stacked)
    assert text.count("__gpu$xla.gpu.triton") == 3


@types
@pytest.mark.parametrize(("tokens", "heads"), SELF_ATTENTION.values(), ids=SELF_ATTENTION)
def test_self_attention_lowers_at_full_size_without_an_array_of_all_pairs(tokens, heads, dtype):
    grid = None if isinstance(tokens, int) else tokens
    tokens = 1 + grid[0] * grid[1] if grid else tokens
    operator = functools.partial(attention.self_attention, num_heads=heads, grid=grid)
    shapes = [jax.ShapeDtypeStruct((1, tokens, 3 * heads * 64), dtype)]
    if grid:
        shapes.append(jax.ShapeDtypeStruct((table_rows(grid), heads), jnp.float32))

    def loss(*inputs):
        return operator(*inputs).astype(jnp.float32).sum()

    text = lowered(jax.grad(loss, argnums=tuple(range(len(shapes)))), *shapes)
    of_bias = {"jaxseg_attention_bias_gradient"} if grid else set()
    assert set(re.findall(r'name = "(jaxseg_\w+)"', text)) == of_bias | {
        f"jaxseg_attention_{name}" for name in ("forward", "query_gradient", "key_gradient")
    }
    assert f"{tokens}x{tokens}x" not in text
    assert "atomic_rmw" not in text
