"""The public operators: each one checks its arguments and runs one of its implementations."""

import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels import reference, xla, xla_attention
from pallas_kernels.choice import KernelChoice, compiles_here, name_kernel_value, platform
from pallas_kernels.gpu import attention as gpu_attention
from pallas_kernels.gpu import operators as gpu
from pallas_kernels.relative_positions import table_rows
from pallas_kernels.tpu import attention as tpu_attention
from pallas_kernels.tpu import conv3x3 as tpu_conv3x3
from pallas_kernels.tpu import dcnv3 as tpu_dcnv3
from pallas_kernels.tpu import ms_deform_attn as tpu_ms_deform_attn
from pallas_kernels.tpu import operators as tpu
from pallas_kernels.tpu.planes import padded_groups

IMPLEMENTATIONS = {"reference": reference, "xla": xla, "gpu": gpu, "tpu": tpu}
ATTENTION = {
    "reference": reference.self_attention,
    "xla": xla_attention.self_attention,
    "gpu": gpu_attention.self_attention,
    "tpu": tpu_attention.self_attention,
}
KERNEL_TYPES = (jnp.float32, jnp.bfloat16)  # types of values; other types run without kernels
LOWERED_AS = {"gpu": "cuda", "tpu": "tpu"}  # platforms with kernels -> their names in lowering


def _run(
    operator: str,
    implementations: Mapping[str, Callable[..., Array]],
    choice: KernelChoice,
    settings: Hashable,
    arrays: Sequence[Array],
    unsupported: Collection[str] = (),
) -> Array:
    """Runs the chosen implementation on arrays, or the best for the platform.

    Args:
      operator: the name of the operator, for messages.
      implementations: a function of the arrays for every name in `IMPLEMENTATIONS`.
      settings: everything that these functions depend on besides `arrays`.
      unsupported: the implementations that do not support this call.
    """
    if choice.implementation not in (None, *IMPLEMENTATIONS):
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(
            f"{operator}: no implementation {choice.implementation!r}; there are {known}"
        )
    if choice.implementation:
        return implementations[choice.implementation](*arrays)
    where, portable = platform(), implementations["xla"]
    if where not in LOWERED_AS or arrays[0].dtype not in KERNEL_TYPES or where in unsupported:
        return portable(*arrays)
    if not compiles_here(operator, where, (settings, choice), implementations[where], arrays):
        return portable(*arrays)
    # The executable may still be lowered for the CPU of a machine with a GPU or TPU.
    kernel = {LOWERED_AS[where]: implementations[where]}
    return lax.platform_dependent(*arrays, **kernel, default=portable)


def _sampling(operator: str, choice: KernelChoice, call: Callable[..., Array]):
    """Returns `call(operator, *arrays)` for every implementation of a deformable operator."""
    found = {name: getattr(module, operator) for name, module in IMPLEMENTATIONS.items()}
    if choice.deterministic:
        found["gpu"] = functools.partial(found["gpu"], deterministic=True)
    return {name: functools.partial(call, function) for name, function in found.items()}


class GroupOrder(NamedTuple):
    """Says which number and order of groups `dcnv3` takes without copying the data.

    It supports any number of groups, and takes the same arrays in any case.

    Attributes:
      padded: the number of groups; those that are added have zeros.
      last: whether the groups come last in memory, after the channels of a group. The transposes of
        arrays that were computed in this order cancel with those of the kernel.
    """

    padded: int
    last: bool


def dcnv3_group_order(groups: int, width: int, implementation: str | None = None) -> GroupOrder:
    """Returns the number and order of groups that `dcnv3` takes without copying the data.

    Args:
      groups: the number of groups of a layer.
      width: the number of columns of its maps.
      implementation: as in `dcnv3`.
    """
    if implementation == "tpu" or (implementation is None and platform() == "tpu"):
        return GroupOrder(padded_groups(groups, width), last=True)
    return GroupOrder(groups, last=False)


GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "offset_scale")


@functools.partial(jax.jit, static_argnames=(*GEOMETRY, "implementation", "deterministic"))
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
    implementation: str | None = None,
    deterministic: bool = False,
) -> Float[Array, "n p q gc"]:
    """Computes the core of DCNv3, channels last, as defined by `reference.dcnv3`.

    Args:
      value: projected input, `groups` × channels per group along the last axis.
      offset: (x, y) pairs in pixels, laid out as [groups, kernel_size², 2] along the last axis.
      mask: sampling weights, laid out as [groups, kernel_size²]. They are already normalized if the
        model normalizes them.
      implementation: one of `IMPLEMENTATIONS`, or None for the best on the platform.
      deterministic: the GPU kernel gives gradients with the same bits in every run, for more time
        and memory.

    Raises:
      ValueError: for shapes that do not belong together, an unknown implementation, or a named
        implementation that does not support this call.
    """
    points = kernel_size**2
    n, height, width, channels = value.shape
    reach = dilation * (kernel_size - 1) + 1
    out_h, out_w = ((size + 2 * padding - reach) // stride + 1 for size in (height, width))
    if channels % groups:
        raise ValueError(
            f"dcnv3: {channels} channels of value {value.shape} do not divide into {groups} groups"
        )
    if offset.shape != (n, out_h, out_w, groups * points * 2):
        raise ValueError(
            f"dcnv3: offset {offset.shape}, expected {(n, out_h, out_w, groups * points * 2)}"
            f" for value {value.shape}"
        )
    if mask.shape != (n, out_h, out_w, groups * points):
        raise ValueError(f"dcnv3: mask {mask.shape}, expected {(n, out_h, out_w, groups * points)}")
    geometry = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "offset_scale": offset_scale,
    }
    choice = KernelChoice(implementation, deterministic)
    on_tpu = (kernel_size, stride, padding, dilation) == (3, 1, 1, 1)
    on_tpu = on_tpu and tpu_dcnv3.fits(height, width, value.dtype)
    output = _run(
        "dcnv3",
        _sampling("dcnv3", choice, lambda operator, *arrays: operator(*arrays, **geometry)),
        choice,
        tuple(geometry.values()),
        (value, offset, mask),
        unsupported=() if on_tpu else ("tpu",),
    )
    return name_kernel_value(output)


def ms_deform_attn_takes_tokens_last(implementation: str | None = None) -> bool:
    """Returns whether `ms_deform_attn` reads arrays with the tokens last in memory.

    It takes the same arrays in any case. Where this is true, the transposes of arrays that were
    computed with the tokens last cancel with those of the kernel.
    """
    return implementation == "tpu" or (implementation is None and platform() == "tpu")


def ms_deform_attn(
    value: Float[Array, "b s heads d"],
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Float[Array, "b q heads levels points 2"],
    attention_weights: Float[Array, "b q heads levels points"],
    *,
    implementation: str | None = None,
    deterministic: bool = False,
) -> Float[Array, "b q heads_d"]:
    """Computes multi-scale deformable attention, as defined by `reference.ms_deform_attn`.

    Args:
      value: projected features of all levels, one after the other, each row by row.
      spatial_shapes: (height, width) per level; static.
      sampling_locations: (x, y) in 0…1 of each level; locations outside sample zeros.
      attention_weights: already normalized over levels and points.
      implementation: one of `IMPLEMENTATIONS`, or None for the best on the platform.
      deterministic: the GPU kernel gives gradients with the same bits in every run, for more time
        and memory.

    Raises:
      ValueError: for shapes that do not belong together, an unknown implementation, or a named
        implementation that does not support this call.
    """
    spatial_shapes = tuple((int(height), int(width)) for height, width in spatial_shapes)
    b, pixels, heads, _ = value.shape
    if pixels != sum(height * width for height, width in spatial_shapes):
        raise ValueError(
            f"ms_deform_attn: value {value.shape} has {pixels} pixels, spatial_shapes"
            f" {spatial_shapes} have {sum(height * width for height, width in spatial_shapes)}"
        )
    expected = (b, *attention_weights.shape[1:2], heads, len(spatial_shapes))
    if attention_weights.ndim != 5 or attention_weights.shape[:4] != expected:
        raise ValueError(
            f"ms_deform_attn: attention_weights {attention_weights.shape}, expected"
            f" (b, queries, heads, levels, points) for value {value.shape} and"
            f" spatial_shapes {spatial_shapes}"
        )
    if sampling_locations.shape != (*attention_weights.shape, 2):
        raise ValueError(
            f"ms_deform_attn: sampling_locations {sampling_locations.shape}, expected"
            f" {(*attention_weights.shape, 2)} for attention_weights {attention_weights.shape}"
        )
    choice = KernelChoice(implementation, deterministic)
    return _ms_deform_attn(value, sampling_locations, attention_weights, spatial_shapes, choice)


@functools.partial(jax.jit, static_argnums=(3, 4))  # traced once per shape
def _ms_deform_attn(value, locations, weights, spatial_shapes, choice):
    def call(operator, value, locations, weights):
        return operator(value, spatial_shapes, locations, weights)

    output = _run(
        "ms_deform_attn",
        _sampling("ms_deform_attn", choice, call),
        choice,
        spatial_shapes,
        (value, locations, weights),
        unsupported=()
        if tpu_ms_deform_attn.fits(spatial_shapes, value.shape[-1], value.dtype)
        else ("tpu",),
    )
    return name_kernel_value(output)


# Traced once per shape.
@functools.partial(jax.jit, static_argnames=("num_heads", "grid", "implementation"))
def self_attention(
    qkv: Float[Array, "b n d"],
    table: Float[Array, "rows g"] | None = None,
    *,
    num_heads: int,
    grid: tuple[int, int] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n e"]:
    """Computes attention of all tokens to all tokens, as defined by `reference.self_attention`.

    Args:
      qkv: queries, keys and values, concatenated; each of them head after head.
      table: BEiT's biases of relative positions (`relative_positions`), or None for no bias. With
        a bias, the tokens are a class token and the patches of a grid.
      num_heads: the number of heads; static.
      grid: height and width of the grid, in patches; static.
      implementation: one of `IMPLEMENTATIONS`, or None for the best on the platform. One that does
        not support the call gives way to "xla".

    Raises:
      ValueError: for shapes that do not belong together, or an unknown implementation.
    """
    _, tokens, width = qkv.shape
    if width % (3 * num_heads):
        raise ValueError(
            f"self_attention: {width} columns of qkv {qkv.shape} are not the queries, keys and"
            f" values of {num_heads} heads"
        )
    if table is not None:
        expected = 1 + grid[0] * grid[1], (table_rows(grid), num_heads)
        if (tokens, table.shape) != expected:
            raise ValueError(
                f"self_attention: a grid of {grid} patches has {expected[0]} tokens and a table of"
                f" {expected[1]}, but qkv is {qkv.shape} and the table {table.shape}"
            )
    channels = width // 3 // num_heads
    settings = {"num_heads": num_heads, "grid": grid}
    supported = {
        "gpu": gpu_attention.fits(channels, qkv.dtype, grid),
        "tpu": tpu_attention.fits(tokens, channels, qkv.dtype, grid),
    }
    unsupported = {name for name, supports in supported.items() if not supports}
    return _run(
        "self_attention",
        {name: functools.partial(function, **settings) for name, function in ATTENTION.items()},
        KernelChoice("xla" if implementation in unsupported else implementation),
        tuple(settings.values()),
        (qkv,) if table is None else (qkv, table),
        unsupported,
    )


def conv3x3_has_kernel(
    shape: Sequence[int], features: int, dtype: DTypeLike, implementation: str | None = None
) -> bool:
    """Returns whether `conv3x3` runs a kernel here for a map of this shape, [b, h, w, c].

    Args:
      shape: the shape of the map.
      features: the number of output channels.
      dtype: the type of the map.
      implementation: as in `conv3x3`.
    """
    on_tpu = implementation == "tpu" or (implementation is None and platform() == "tpu")
    return on_tpu and tpu_conv3x3.fits(shape, features, dtype)


@functools.partial(jax.jit, static_argnames=("implementation",))  # traced once per shape
def conv3x3(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 _ d"],
    *,
    implementation: str | None = None,
) -> Float[Array, "b h w d"]:
    """Computes a 3×3 convolution, as defined by `reference.conv3x3`.

    Only TPUs have a kernel, for bfloat16 and for channels that fill their registers
    (`conv3x3_has_kernel`). Everything else is XLA's convolution.

    Args:
      x: the maps.
      kernel: the weights.
      implementation: one of `IMPLEMENTATIONS`, or None for the best on the platform. One that does
        not support the call gives way to "xla".

    Raises:
      ValueError: for shapes that do not belong together, or an unknown implementation.
    """
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"conv3x3: {x.shape[-1]} channels of x {x.shape}, {kernel.shape[2]} of the kernel"
            f" {kernel.shape}"
        )
    fits = tpu_conv3x3.fits(x.shape, kernel.shape[-1], x.dtype)
    unsupported = ("gpu",) if fits else ("gpu", "tpu")
    found = {
        "reference": reference.conv3x3,
        "xla": xla.conv3x3,
        "gpu": xla.conv3x3,
        "tpu": tpu_conv3x3.conv3x3,
    }
    choice = KernelChoice("xla" if implementation in unsupported else implementation)
    return _run("conv3x3", found, choice, (), (x, kernel), unsupported)
