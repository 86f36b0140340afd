"""Compares the operators of `pallas_kernels` on this device with their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from jaxseg.selftest.check import Errors, compiled, relative_error
from pallas_kernels import choice, reference
from pallas_kernels.relative_positions import table_rows

# Tolerances relative to the largest expected value, by the output and the array that a gradient is
# for. Float32 sums in another order differ by 1e-6. Rounding a result, or the weights of attention,
# to bfloat16 changes it by up to 2⁻⁸; twice that is allowed. Coordinates stay in float32.
FLOAT32 = {"output": 1e-5}  # gradients 1e-4
IN_BFLOAT16 = ("output", "value", "qkv", "table", "x", "kernel")
BFLOAT16 = dict.fromkeys(IN_BFLOAT16, 2**-7)  # the others 1e-3


def dcnv3_case(height: int, width: int, groups: int, channels: int, images: int = 1):
    """Makes a call of DCNv3 with random arrays.

    Args:
      height: height of the input and the output.
      width: width of the input and the output.
      groups: the number of groups.
      channels: the number of channels per group.
      images: the batch size.

    Returns:
      A function that turns an operator into a function of the arrays alone, and these arrays by
      name. The first one has the type of the model.
    """
    random = np.random.default_rng(0)
    hw = (images, height, width)
    arrays = {
        "value": random.standard_normal((*hw, groups * channels)),
        "places": 2 * random.standard_normal((*hw, groups * 18)),
        "weights": random.random((*hw, groups * 9)),
    }
    geometry = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}

    def bind(operator):
        return functools.partial(operator, **geometry, groups=groups, offset_scale=1.0)

    return bind, arrays


def ms_deform_attn_case(
    queries: int, levels: tuple[tuple[int, int], ...], heads: int, channels: int, images: int = 1
):
    """Makes a call of multi-scale deformable attention with random arrays, as `dcnv3_case` does.

    Some sampling points lie outside the feature maps.
    """
    random = np.random.default_rng(0)
    pixels = sum(height * width for height, width in levels)
    sampled = (images, queries, heads, len(levels), 4)
    arrays = {
        "value": random.standard_normal((images, pixels, heads, channels)),
        "places": random.uniform(-0.1, 1.1, (*sampled, 2)),
        "weights": random.random(sampled) / (4 * len(levels)),
    }
    return lambda operator: lambda value, *others: operator(value, levels, *others), arrays


def self_attention_case(grid: tuple[int, int], heads: int, channels: int, images: int = 1):
    """Makes a call of self-attention with relative positions and random arrays."""
    random = np.random.default_rng(0)
    arrays = {
        "qkv": random.standard_normal((images, 1 + grid[0] * grid[1], 3 * heads * channels)),
        "table": random.standard_normal((table_rows(grid), heads)),
    }
    return lambda operator: functools.partial(operator, num_heads=heads, grid=grid), arrays


def conv3x3_case(height: int, width: int, channels: int, features: int, images: int = 1):
    """Makes a 3×3 convolution with random arrays, as `dcnv3_case` does."""
    random = np.random.default_rng(0)
    arrays = {
        "x": random.standard_normal((images, height, width, channels)),
        "kernel": random.standard_normal((3, 3, channels, features)),
    }
    return lambda operator: lambda x, kernel: operator(x, kernel.astype(x.dtype)), arrays


CASES = {
    "dcnv3": {
        "small": functools.partial(dcnv3_case, 4, 6, 2, 4),
        "odd": functools.partial(dcnv3_case, 7, 13, 3, 5, images=2),
        "published": functools.partial(dcnv3_case, 16, 32, 32, 16),  # InternImage-T, stage 4
    },
    "ms_deform_attn": {
        "small": functools.partial(ms_deform_attn_case, 6, ((4, 4), (2, 2)), 2, 4),
        "odd": functools.partial(ms_deform_attn_case, 7, ((7, 5), (3, 4), (1, 2)), 3, 5, images=2),
        # The injectors of ViT-Adapter-T at 256 × 256.
        "published": functools.partial(
            ms_deform_attn_case, 256, ((32, 32), (16, 16), (8, 8)), 6, 32
        ),
    },
    "self_attention": {
        "small": functools.partial(self_attention_case, (2, 3), 2, 8),
        "odd": functools.partial(self_attention_case, (5, 7), 3, 16, images=2),
        "published": functools.partial(self_attention_case, (32, 32), 12, 64),  # BEiT-B at 512
    },
    "conv3x3": {
        "small": functools.partial(conv3x3_case, 4, 16, 128, 128),
        "odd": functools.partial(conv3x3_case, 7, 32, 128, 256, images=2),
        # UPerNet's auxiliary head on InternImage-T at 512 × 512.
        "published": functools.partial(conv3x3_case, 32, 32, 256, 256),
    },
}


def operator_errors(operator: str, shape: str, dtype: str) -> Errors:
    """Returns the errors of an operator's output and gradients against the float32 definition.

    Args:
      operator: a name in `CASES`.
      shape: the name of a shape of this operator.
      dtype: of the model, "float32" or "bfloat16".
    """
    bind, arrays = CASES[operator][shape]()
    first, *others = (jnp.asarray(x, jnp.float32) for x in arrays.values())
    given = (first.astype(dtype), *others)
    rounded = (given[0].astype(jnp.float32), *others)
    here = bind(getattr(pallas_kernels, operator))
    definition = bind(getattr(reference, operator))
    cotangent = jnp.cos(jnp.arange(jax.eval_shape(here, *given).size))
    results = _with_gradients(here, given, cotangent)
    expected = _with_gradients(definition, rounded, cotangent)
    tolerances, otherwise = (FLOAT32, 1e-4) if dtype == "float32" else (BFLOAT16, 1e-3)
    return {
        name: (relative_error(result.astype(jnp.float32), exact), tolerances.get(name, otherwise))
        for name, result, exact in zip(("output", *arrays), results, expected, strict=True)
    }


def kernel_errors() -> Errors:
    """Returns an error for each kernel of this device that fell back to XLA in earlier checks."""
    refused = choice.refusals()
    return {f"{name}: {reason}": (1, 0.5) for name, reason in refused.items()} or {"": (0, 0.5)}


def _with_gradients(operator, arrays, cotangent):
    """Returns the output, and the gradients with respect to the arrays."""

    def run(*arrays):
        output, transpose = jax.vjp(operator, *arrays)
        # The cotangent is exact in bfloat16, so that it is the same for all dtypes.
        rounded = cotangent.astype(jnp.bfloat16).astype(output.dtype)
        return output, *transpose(rounded.reshape(output.shape))

    return compiled(run)(*arrays)
