"""Defines the operators in plain jax.numpy, as documentation and test oracle."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.relative_positions import relative_position_index


def bilinear(
    value: Float[Array, "n h w g c"], y: Float[Array, "n p q g k"], x: Float[Array, "n p q g k"]
) -> Float[Array, "n p q g k c"]:
    """Samples every group of `value` bilinearly at pixel coordinates (y, x), k points per group.

    Pixel centers are integers. A neighbor outside the image counts as zero on its own, so a point
    half a pixel outside has half the weight. At integer coordinates the derivative is the
    right-sided difference, as in the CUDA operator, because the lower neighbor is `floor`.
    """
    n, height, width, groups, _ = value.shape
    y0, x0 = jnp.floor(y), jnp.floor(x)
    image = jnp.arange(n).reshape(n, 1, 1, 1, 1)
    group = jnp.arange(groups)[:, None]
    result = jnp.zeros((*y.shape, value.shape[-1]), value.dtype)
    for row, row_weight in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, column_weight in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = jnp.where(inside, row_weight * column_weight, 0)
            row_index = jnp.clip(row, 0, height - 1).astype(jnp.int32)
            column_index = jnp.clip(column, 0, width - 1).astype(jnp.int32)
            corner = value[image, row_index, column_index, group]
            result += weight[..., None].astype(value.dtype) * corner
    return result


def dcnv3(
    value: Float[Array, "n h w gc"],
    offset: Float[Array, "n p q gk2"],
    mask: Float[Array, "n p q gk"],
    *,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    offset_scale: float,
) -> Float[Array, "n p q gc"]:
    """Computes DCNv3: per output pixel and group, a mask-weighted sum of kernel_size² samples.

    Point k = i·kernel_size + j stands at column i and row j of the kernel grid (x is the slow
    index). Its offset pair is (x, y). `offset_scale` multiplies both the grid and the learned
    offset. InternImage (arXiv:2211.05778), section 3.1. Order and signs are those of the reference
    operator.
    """
    n, height, width, channels = value.shape
    _, out_h, out_w, _ = mask.shape
    points = kernel_size**2
    offset = offset.reshape(n, out_h, out_w, groups, points, 2)
    mask = mask.reshape(n, out_h, out_w, groups, points)
    value = value.reshape(n, height, width, groups, channels // groups)

    half = dilation * (kernel_size - 1) // 2
    axis = jnp.arange(kernel_size, dtype=jnp.float32) * dilation - half
    grid_x, grid_y = (g.ravel() for g in jnp.meshgrid(axis, axis, indexing="ij"))
    column = half - padding + stride * jnp.arange(out_w, dtype=jnp.float32).reshape(-1, 1, 1)
    row = half - padding + stride * jnp.arange(out_h, dtype=jnp.float32).reshape(-1, 1, 1, 1)
    x = column + (grid_x + offset[..., 0]) * offset_scale
    y = row + (grid_y + offset[..., 1]) * offset_scale
    samples = mask[..., None].astype(value.dtype) * bilinear(value, y, x)
    return samples.sum(axis=-2).reshape(n, out_h, out_w, channels)


def ms_deform_attn(
    value: Float[Array, "b s heads d"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q heads levels points 2"],
    attention_weights: Float[Array, "b q heads levels points"],
) -> Float[Array, "b q heads_d"]:
    """Computes multi-scale deformable attention: per query and head, a weighted sum of all samples.

    Level l holds h·w pixels, row by row, of the S pixels of `value`. A location (x, y) goes from 0
    to 1 between the borders of its level: pixel = location · size − 0.5. Deformable DETR
    (arXiv:2010.04159), section 4.1. Coordinates and sums are in float32, as in the CUDA operator.
    """
    b, _, heads, d = value.shape
    queries = sampling_locations.shape[1]
    locations = sampling_locations.astype(jnp.float32)
    result = jnp.zeros((b, queries, heads, d), jnp.float32)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        pixels = value[:, start : start + height * width].astype(jnp.float32)
        x = locations[:, :, None, :, level, :, 0] * width - 0.5  # [b, q, 1, heads, points]
        y = locations[:, :, None, :, level, :, 1] * height - 0.5
        samples = bilinear(pixels.reshape(b, height, width, heads, d), y, x)[:, :, 0]
        weights = attention_weights[:, :, :, level, :, None].astype(jnp.float32)
        result += (weights * samples).sum(axis=-2)
        start += height * width
    return result.reshape(b, queries, heads * d).astype(value.dtype)


def self_attention(
    qkv: Float[Array, "b n d"],
    table: Float[Array, "rows g"] | None = None,
    *,
    num_heads: int,
    grid: tuple[int, int] | None = None,
) -> Float[Array, "b n e"]:
    """Computes attention of all tokens to all tokens, from their packed projections.

    The last axis of `qkv` has the queries, keys and values, each of them head after head. The
    weights of a query are the softmax of its products with all keys, divided by the root of their
    length (arXiv:1706.03762). With a table, a bias for the relative position of query and key is
    added to the products (BEiT, arXiv:2106.08254). `relative_positions` describes the table of a
    `grid` of patches.
    """
    b, n, _ = qkv.shape
    query, key, value = jnp.split(qkv.reshape(b, n, 3 * num_heads, -1), 3, axis=2)
    logits = jnp.einsum("bngd,bmgd->bgnm", query, key) / query.shape[-1] ** 0.5
    if table is not None:
        logits += table[relative_position_index(grid)].transpose(2, 0, 1)
    attended = jnp.einsum("bgnm,bmgd->bngd", jax.nn.softmax(logits), value)
    return attended.reshape(b, n, -1)


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Computes a 3×3 convolution with stride 1 and zero padding of 1, in float32."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        jnp.einsum("bhwc,cd->bhwd", padded[:, i : i + height, j : j + width], kernel[i, j])
        for i in range(3)
        for j in range(3)
    ).astype(x.dtype)
