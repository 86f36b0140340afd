"""Self-attention on NVIDIA GPUs, which stores no array of queries × keys.

Without a bias, in half precision, cuDNN's fused kernel runs where there is a GPU; programs for a
GPU that is absent cannot be made with its library. With a bias, cuDNN reads the bias of every pair
and writes its gradient. The kernels of this project read BEiT's from their table instead.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from pallas_kernels.choice import name_kernel_value, platform
from pallas_kernels.gpu import attention_bias, attention_kernels
from pallas_kernels.gpu.attention_bias import LOG2E
from pallas_kernels.gpu.attention_kernels import Layout, Residuals
from pallas_kernels.relative_positions import OF_CLASS_TOKEN
from pallas_kernels.xla_attention import merge_heads, split_heads

LOWEST_CAPABILITY = (8, 0)  # of the GPUs that run cuDNN's kernel
CHANNELS = (16, 32, 64, 128)  # of a head, in the kernels: powers of two
WIDEST_GRID = 128  # a block of biases in registers holds the pairs of two rows of the grid
WARPS = 4
# The queries or keys of a block, by the bytes of a value. A warpgroup of Hopper multiplies 64 rows
# at once. Products in float32 are unrolled: with 64 rows, the kernels compile for minutes.
BLOCK = {2: 64, 4: 32}


def cudnn_supports(dtype: jnp.dtype) -> bool:
    """Returns whether cuDNN's kernel takes arrays of a type on the GPUs of this machine."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return False
    if not platform() == jax.default_backend() == "gpu":
        return False
    capability = jax.devices()[0].compute_capability
    return tuple(map(int, capability.split("."))) >= LOWEST_CAPABILITY


def fits(channels: int, dtype: jnp.dtype, grid: tuple[int, int] | None) -> bool:
    """Returns whether `self_attention` takes a call.

    Args:
      channels: the number of channels of a head.
      dtype: the type of the model.
      grid: height and width of the grid of patches, if there is a bias.
    """
    if grid is None and cudnn_supports(dtype):
        return True
    return channels in CHANNELS and (grid is None or grid[1] <= WIDEST_GRID)


def attend(
    query: Float[Array, "b n g d"], key: Float[Array, "b m g d"], value: Float[Array, "b m g d"]
) -> Float[Array, "b n g d"]:
    """Computes attention of every query to all keys with cuDNN's kernel; sums are in float32."""
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _launch(body, layout, grid, outputs, *operands):
    return pl.pallas_call(
        functools.partial(body, layout),
        out_shape=outputs,
        grid=grid,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=2),
        interpret=layout.interpret,
        name=f"jaxseg_attention_{body.__name__.removesuffix('_kernel')}",
    )(*operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(qkv, table, layout):
    return _forward(qkv, table, layout)[0]


def _entries(table, layout):
    return [] if table is None else [attention_bias.entries(table, layout.grid)]


def _forward(qkv, table, layout):
    b, n, width = qkv.shape
    outputs = [
        jax.ShapeDtypeStruct((b, n * width // 3), qkv.dtype),
        jax.ShapeDtypeStruct((b, layout.heads * n), jnp.float32),
    ]
    grid = b, layout.heads, layout.blocks
    read = qkv.reshape(b, -1), *_entries(table, layout)
    output, log_sum = _launch(attention_kernels.forward_kernel, layout, grid, outputs, *read)
    output, log_sum = map(name_kernel_value, (output.reshape(b, n, width // 3), log_sum))
    return output, (qkv, table, output, log_sum)


def _backward(layout, residuals, cotangent):
    qkv, table, output, log_sum = residuals
    b, n, width = qkv.shape
    product = output.astype(jnp.float32) * cotangent.astype(jnp.float32)
    product = product.reshape(b, n, layout.heads, -1).sum(axis=-1).swapaxes(1, 2).reshape(b, -1)
    read = Residuals(qkv.reshape(b, -1), cotangent.reshape(b, -1), log_sum, product)
    read = read, *_entries(table, layout)
    grid = b, layout.heads, layout.blocks
    part = jax.ShapeDtypeStruct((b, n * width // 3), qkv.dtype)
    query = _launch(attention_kernels.query_gradient_kernel, layout, grid, part, *read)
    key, value = _launch(attention_kernels.key_gradient_kernel, layout, grid, [part] * 2, *read)
    of_qkv = jnp.concatenate([x.reshape(b, n, -1) for x in (query, key, value)], axis=-1)
    if table is None:
        return of_qkv, None
    rows, size = 2 * layout.grid[0] - 1, layout.row_block
    of_pairs = _launch(
        attention_kernels.bias_gradient_kernel,
        layout,
        (layout.heads, rows),
        jax.ShapeDtypeStruct((layout.heads, rows, size, size), jnp.float32),
        *read,
    )
    of_patches = attention_bias.sum_by_displacement(of_pairs, layout.grid[1])
    of_class_token = _class_token_gradients(qkv, cotangent, log_sum, product, table, layout)
    of_table = jnp.concatenate([of_patches, of_class_token], axis=1).T
    return of_qkv, of_table.astype(table.dtype)


def _class_token_gradients(qkv, cotangent, log_sum, product, table, layout):
    """Returns the gradients of the biases of the class token, [heads, 3], as the table has them."""
    query, key, value = split_heads(qkv, layout.heads)
    cotangent = cotangent.reshape(value.shape)
    log_sum, product = (x.reshape(-1, layout.heads, layout.tokens) for x in (log_sum, product))
    to_patch, from_patch, of_token = LOG2E * table[-OF_CLASS_TOKEN:, :, None]

    def of_logits(queries, keys, bias):
        dot = functools.partial(
            jnp.einsum,
            "bngd,bmgd->bgnm",
            preferred_element_type=jnp.float32,
            precision=lax.Precision.HIGHEST,
        )
        logits = LOG2E * layout.scale * dot(query[:, queries], key[:, keys]) + bias
        weights = jnp.exp2(logits - log_sum[:, :, queries, None])
        of_weights = dot(cotangent[:, queries], value[:, keys])
        gradients = weights * (of_weights - product[:, :, queries, None])
        return gradients.sum(axis=(0, 2, 3))

    first, patches = slice(0, 1), slice(1, None)
    return jnp.stack(
        [
            of_logits(first, patches, to_patch[..., None]),
            of_logits(patches, first, from_patch[..., None]),
            of_logits(first, first, of_token[..., None]),
        ],
        axis=1,
    )


_attend.defvjp(_forward, _backward)


def self_attention(
    qkv: Float[Array, "b n d"],
    table: Float[Array, "rows g"] | None = None,
    *,
    num_heads: int,
    grid: tuple[int, int] | None = None,
    interpret: bool = False,
) -> Float[Array, "b n e"]:
    """Computes `reference.self_attention` with kernels for NVIDIA GPUs; sums are in float32.

    Args:
      qkv: queries, keys and values, concatenated; each of them head after head.
      table: the biases of relative positions, or None.
      num_heads: the number of heads.
      grid: height and width of the grid of patches.
      interpret: whether the kernels run without a GPU, slowly.
    """
    if table is None and not interpret and cudnn_supports(qkv.dtype):
        return merge_heads(attend(*split_heads(qkv, num_heads)))
    b, tokens, width = qkv.shape
    channels = width // 3 // num_heads
    layout = Layout(
        b, tokens, num_heads, channels, grid, BLOCK[qkv.dtype.itemsize], interpret=interpret
    )
    return _attend(qkv, table, layout)
