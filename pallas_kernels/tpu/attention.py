"""Self-attention on TPU, without an array of queries × keys (FlashAttention, arXiv:2205.14135).

`pallas_kernels/reference.py` defines the operator. The kernels (`attention_kernels`) read queries,
keys and values from the packed projections, and make the biases of relative positions from their
table. XLA has no data to move.
"""

import functools
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.choice import name_kernel_value
from pallas_kernels.relative_positions import by_displacement
from pallas_kernels.tpu import attention_layout
from pallas_kernels.tpu.attention_bias import shifted_tables
from pallas_kernels.tpu.attention_kernels import backward_kernel, forward_kernel
from pallas_kernels.tpu.attention_lanes import FOR_TOKEN, LN2
from pallas_kernels.tpu.attention_layout import LANES, TOKEN_ROWS, Layout

VMEM_BYTES = 60 * 2**20  # limit of a kernel; the smallest chips have 64 MiB
HELD_BYTES = 50 * 2**20  # the part of it for whole images; the rest is for one group of strips


def fits(tokens: int, channels: int, dtype: jnp.dtype, grid: Sequence[int] | None) -> bool:
    """Returns whether the kernels take a call.

    Several heads have to fill the lanes of a register, and to leave lanes of each other free. The
    memory has to hold them for one image.

    Args:
      tokens: the number of tokens.
      channels: the number of channels of a head.
      dtype: the type of the model.
      grid: height and width of the grid of patches, if there is a bias.
    """
    if LANES % channels or not FOR_TOKEN < channels < LANES:
        return False
    if grid is not None and grid[1] > LANES:
        return False
    layout = _layout(tokens, channels, grid)
    return attention_layout.held_bytes(layout, tokens, jnp.dtype(dtype).itemsize) <= HELD_BYTES


def _layout(tokens, channels, grid):
    if grid is None:
        return attention_layout.of_tokens(tokens, channels)
    return attention_layout.of_grid(grid, channels)


class Operand(NamedTuple):
    """An array in HBM, or the shape of one, and the block of it that a step of a kernel has."""

    array: Array | jax.ShapeDtypeStruct
    spec: pl.BlockSpec


def _of_tokens(array, first=0):
    """All tokens of an image, for the heads of one step; `first` is the block of the first head."""
    block = (None, array.shape[1], LANES)
    return Operand(array, pl.BlockSpec(block, lambda g, b, t: (b, 0, first + g)))


def _of_block(array, layout):
    """The rows of a block of queries, for the heads of one step."""
    block = (None, None, layout.queries, LANES)
    return Operand(array, pl.BlockSpec(block, lambda g, b, t: (b, g, t, 0)))


def _of_image(array):
    """All rows of an image, for the heads of one step."""
    block = (None, None, *array.shape[2:])
    return Operand(array, pl.BlockSpec(block, lambda g, b, t: (b, g, 0, 0)))


def _of_heads(array, layout):
    """The arrays of the heads of one step, the same for all images."""
    block = (LANES // layout.channels, *array.shape[1:])
    return Operand(array, pl.BlockSpec(block, lambda g, b, t: (g, 0, 0, 0)))


def _call(
    kernel,
    inputs: Mapping[str, Operand],
    outputs: Mapping[str, Operand],
    scratch: Mapping[str, object],
    layout: Layout,
    name: str,
) -> Sequence[Array]:
    """Runs a kernel, interpreted if it is lowered for another platform than TPU."""
    names = (*inputs, *outputs)

    def run(*refs, **scratch):
        kernel(types.SimpleNamespace(**dict(zip(names, refs, strict=True)), **scratch), layout)

    b, _, width = inputs["query"].array.shape
    call = functools.partial(
        pl.pallas_call,
        run,
        name=name,
        grid=(width // 3 // LANES, b, layout.blocks),
        in_specs=[operand.spec for operand in inputs.values()],
        out_specs=[operand.spec for operand in outputs.values()],
        out_shape=[operand.array for operand in outputs.values()],
        scratch_shapes=dict(scratch),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
    )
    arrays = [operand.array for operand in inputs.values()]
    return lax.platform_dependent(*arrays, tpu=call(), default=call(interpret=True))


def _inputs(qkv, tables, biases, layout):
    """Returns the inputs of both kernels."""
    steps = qkv.shape[2] // 3 // LANES
    parts = {name: _of_tokens(qkv, i * steps) for i, name in enumerate(("query", "key", "value"))}
    if not layout.has_bias:
        return parts
    in_scalar_memory = pl.BlockSpec(memory_space=pltpu.SMEM)
    of_bias = {"tables": _of_heads(tables, layout), "biases": Operand(biases, in_scalar_memory)}
    return parts | of_bias


def _scratch(layout, dtype, queries: Sequence[str], tokens: Sequence[str]):
    """Returns the memory of a kernel: keys and values by head, blocks of bias, and queries.

    Args:
      layout: where everything lies.
      dtype: the type of the model.
      queries: names of copies of the queries of all blocks.
      tokens: names of copies of the class token as a query.
    """
    heads = LANES // layout.channels
    rows = layout.blocks * layout.queries
    scratch = {
        **{name: [pltpu.VMEM((layout.keys, LANES), dtype)] * heads for name in ("keys", "values")},
        **{name: pltpu.VMEM((rows, LANES), dtype) for name in queries},
        **{name: pltpu.VMEM((TOKEN_ROWS, LANES), dtype) for name in tokens},
    }
    if layout.has_bias:
        scratch["bias"] = pltpu.VMEM((heads, *layout.bias_shape), jnp.float32)
    return scratch


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(
    qkv: Float[Array, "b n d"],
    tables: Float[Array, "g k r l"] | None,
    biases: Float[Array, "3 g"] | None,
    layout: Layout,
) -> Float[Array, "b n e"]:
    """Computes self-attention.

    Args:
      qkv: queries, keys and values, concatenated; each of them head after head.
      tables: the shifted tables of relative positions, times log₂e, or None.
      biases: the biases of the class token, times log₂e, or None: as query, as key, and both.
      layout: where everything lies.
    """
    return _forward(qkv, tables, biases, layout)[0]


def _forward(qkv, tables, biases, layout):
    qkv = name_kernel_value(qkv)
    b, tokens, width = qkv.shape
    steps = width // 3 // LANES

    def shape(*sizes):
        return jax.ShapeDtypeStruct((b, *sizes), qkv.dtype)

    outputs = {
        "output": _of_tokens(shape(tokens, width // 3)),
        "log_sum": _of_block(shape(steps, layout.blocks * layout.queries, LANES), layout),
    }
    if layout.has_bias:
        outputs["token_log_sum"] = _of_image(shape(steps, TOKEN_ROWS, LANES))
    output, *log_sums = _call(
        forward_kernel,
        _inputs(qkv, tables, biases, layout),
        outputs,
        _scratch(layout, qkv.dtype, ["queries", "outputs"], ["token"]),
        layout,
        "attention_forward",
    )
    output, *log_sums = map(name_kernel_value, (output, *log_sums))
    return output, (qkv, tables, biases, output, log_sums)


def _backward(layout, residuals, cotangent):
    qkv, tables, biases, output, log_sums = residuals
    inputs = _inputs(qkv, tables, biases, layout) | {
        "output": _of_tokens(output),
        "cotangent": _of_tokens(cotangent),
        "log_sum": _of_block(log_sums[0], layout),
    }
    part = jax.ShapeDtypeStruct(output.shape, qkv.dtype)
    outputs = {name: _of_tokens(part) for name in ("query_out", "key_out", "value_out")}
    heads = LANES // layout.channels
    sums = [pltpu.VMEM((layout.keys, LANES), jnp.float32)] * heads
    scratch = _scratch(
        layout,
        qkv.dtype,
        ["queries", "outputs", "cotangents", "gradients"],
        ["token", "token_output", "token_cotangent"],
    )
    scratch |= {"key_sums": sums, "value_sums": sums}
    if layout.has_bias:
        steps = log_sums[0].shape[1]
        shape = jax.ShapeDtypeStruct((len(qkv), steps, 1, LANES), jnp.float32)
        inputs["token_log_sum"] = _of_image(log_sums[1])
        outputs["tables_out"] = _of_heads(jax.ShapeDtypeStruct(tables.shape, jnp.float32), layout)
        outputs["biases_out"] = _of_image(shape)
        scratch["bias_sum"] = pltpu.VMEM((heads, *layout.bias_shape), jnp.float32)
    query, key, value, *of_bias = _call(
        backward_kernel, inputs, outputs, scratch, layout, "attention_backward"
    )
    qkv = jnp.concatenate([query, key, value], axis=-1)
    if not layout.has_bias:
        return qkv, None, None
    tables, biases = of_bias
    biases = biases[..., : 3 * heads].sum(axis=0).reshape(-1, 3)
    return qkv, LN2 * tables, LN2 * biases.T


attend.defvjp(_forward, _backward)


def self_attention(
    qkv: Float[Array, "b n d"],
    table: Float[Array, "rows g"] | None = None,
    *,
    num_heads: int,
    grid: tuple[int, int] | None = None,
) -> Float[Array, "b n e"]:
    """Computes `reference.self_attention` with kernels for TPUs; sums are in float32."""
    b, tokens, width = qkv.shape
    width //= 3
    layout = _layout(tokens, width // num_heads, grid)
    more = -width % LANES  # heads without values fill the last register
    if more:
        qkv = jnp.pad(qkv.reshape(b, tokens, 3, width), ((0, 0), (0, 0), (0, 0), (0, more)))
        qkv = qkv.reshape(b, tokens, -1)
    tables = biases = None
    if table is not None:
        table = jnp.pad(table / LN2, ((0, 0), (0, more // layout.channels)))
        patches, biases = by_displacement(table, grid)
        tables = shifted_tables(patches, layout)
    return attend(qkv, tables, biases, layout)[..., :width]
