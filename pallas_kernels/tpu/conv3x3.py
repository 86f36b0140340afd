"""3×3 convolutions on TPU as matrix products over blocks of rows, without a copy of the map.

XLA pads a map of few images and splits it into strips before it convolves, which takes as long as
the products. The kernels here read the map as it is, with one more row above and below a block. A
product for each column of the kernel sums over its three rows and all channels. Its result, not
the map, is then shifted by one column.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

LANES = 128
SUBLANES = 16  # of bfloat16
CORES = 2  # that share the work where a device has several
CELLS = 512  # in a block of rows, about
VMEM_BYTES = 60 * 2**20  # limit of a kernel; the smallest chips have 64 MiB
HELD_BYTES = 48 * 2**20  # the part of it for operands and results; the rest is for sums


def fits(shape: Sequence[int], features: int, dtype: DTypeLike) -> bool:
    """Returns whether the kernels take a map of this shape, [b, h, w, c].

    Channels must fill the lanes of registers, and columns their sublanes. The memory must hold the
    weights and their gradient. Only bfloat16 is taken, in which the matrix unit computes.

    Args:
      shape: the shape of the map.
      features: the number of output channels.
      dtype: the type of the map.
    """
    *_, width, channels = shape
    if jnp.dtype(dtype) != jnp.bfloat16 or channels % LANES or features % LANES or width % SUBLANES:
        return False
    return 9 * channels * features * 4 <= HELD_BYTES


def rows_of_block(height: int, width: int) -> int:
    """Returns the number of rows of a block, which divides the height."""
    most = max(1, CELLS // width)
    return max(rows for rows in range(1, min(most, height) + 1) if height % rows == 0)


def parts_of_gradient(features: int) -> int:
    """Returns the number of parts in which the gradient of the weights is computed."""
    return math.gcd(features // LANES, CORES)


def _rows(above, here, below):
    """Returns a block with the rows around it, [rows + 2, w, c]; outside of the map they are 0."""
    index, last = pl.program_id(2), pl.num_programs(2) - 1
    above = jnp.where(index > 0, above[...], jnp.zeros_like(above[...]))
    below = jnp.where(index < last, below[...], jnp.zeros_like(below[...]))
    return jnp.concatenate([above, here[...], below], axis=0)


def _neighbor(x, width, step):
    """Returns for each cell [rows · w, c] its neighbor `step` columns on, in the same row, or 0."""
    cells = x.shape[0]
    column = lax.broadcasted_iota(jnp.int32, x.shape, 0) % width
    outside = column == (width - 1 if step > 0 else 0)
    return jnp.where(outside, 0.0, pltpu.roll(x, -step % cells, 0))


def forward_kernel(above, here, below, kernel, output):
    """Writes a block of rows of the convolution."""
    rows, width, channels = here.shape
    x = _rows(above, here, below)
    parts = [x[i : i + rows].reshape(rows * width, channels) for i in range(3)]

    def of_column(j):
        products = (
            jnp.dot(parts[i], kernel[i, j], preferred_element_type=jnp.float32) for i in range(3)
        )
        return sum(products)

    total = _neighbor(of_column(0), width, -1) + of_column(1) + _neighbor(of_column(2), width, 1)
    output[...] = total.reshape(output.shape).astype(output.dtype)


def gradient_kernel(above, here, below, cotangent, output):
    """Adds what a block of rows contributes to the gradient of the kernel."""

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        output[...] = jnp.zeros_like(output)

    rows, width, channels = here.shape
    x = _rows(above, here, below)
    wide = cotangent[...].reshape(rows * width, -1).astype(jnp.float32)
    shifted = [_neighbor(wide, width, 1), wide, _neighbor(wide, width, -1)]
    shifted = [part.astype(cotangent.dtype) for part in shifted]
    for i in range(3):
        part = x[i : i + rows].reshape(rows * width, channels)
        for j in range(3):
            output[i, j] += lax.dot_general(
                part, shifted[j], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )


def _call(
    kernel: Callable,
    name: str,
    x: Array,
    other: Array,
    other_spec: pl.BlockSpec,
    output: jax.ShapeDtypeStruct,
    output_spec: pl.BlockSpec,
    parts: int,
    blocks: str,
):
    """Runs a kernel over all blocks, interpreted if it is lowered for another platform than TPU.

    Args:
      parts: the parts of the output channels, which are computed one after the other, or by
        several cores.
      blocks: "parallel" if the blocks are independent, too, else "arbitrary".
    """
    b, height, width, channels = x.shape
    rows = rows_of_block(height, width)

    def of_x(rows, index_of):
        return pl.BlockSpec((None, rows, width, channels), lambda p, b, t: (b, index_of(t), 0, 0))

    call = functools.partial(
        pl.pallas_call,
        kernel,
        name=name,
        grid=(parts, b, height // rows),
        in_specs=[
            of_x(1, lambda t: jnp.maximum(t * rows - 1, 0)),
            of_x(rows, lambda t: t),
            of_x(1, lambda t: jnp.minimum((t + 1) * rows, height - 1)),
            other_spec,
        ],
        out_specs=output_spec,
        out_shape=output,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", blocks, blocks), vmem_limit_bytes=VMEM_BYTES
        ),
    )
    return lax.platform_dependent(x, x, x, other, tpu=call(), default=call(interpret=True))


def _of_map(shape, parts):
    """A block of rows of an output, and a part of its channels."""
    _, height, width, features = shape
    block = (None, rows_of_block(height, width), width, features // parts)
    return pl.BlockSpec(block, lambda p, b, t: (b, t, 0, p))


def _of_kernel(shape, parts):
    """The weights of a part of the output channels."""
    return pl.BlockSpec((*shape[:3], shape[3] // parts), lambda p, b, t: (0, 0, 0, p))


@jax.custom_vjp
def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Computes `reference.conv3x3` with kernels for TPUs; sums are in float32."""
    output = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[-1]), x.dtype)
    specs = _of_kernel(kernel.shape, 1), output, _of_map(output.shape, 1)
    return _call(forward_kernel, "conv3x3_forward", x, kernel, *specs, 1, "parallel")


def _forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _backward(residuals, cotangent):
    x, kernel = residuals
    x_gradient = conv3x3(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))
    parts = parts_of_gradient(cotangent.shape[-1])
    output = jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
    specs = _of_map(cotangent.shape, parts), output, _of_kernel(kernel.shape, parts)
    kernel_gradient = _call(
        gradient_kernel, "conv3x3_backward", x, cotangent, *specs, parts, "arbitrary"
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


conv3x3.defvjp(_forward, _backward)
