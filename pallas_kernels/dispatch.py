"""The public operators: each one checks its arguments and runs one of its implementations."""

import functools
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import reference, xla
from pallas_kernels.choice import KernelChoice, compiles_here, platform
from pallas_kernels.gpu import operators as gpu
from pallas_kernels.tpu import dcnv3 as tpu_dcnv3
from pallas_kernels.tpu import ms_deform_attn as tpu_ms_deform_attn
from pallas_kernels.tpu import operators as tpu

IMPLEMENTATIONS = {"reference": reference, "xla": xla, "gpu": gpu, "tpu": tpu}
KERNEL_TYPES = (jnp.float32, jnp.bfloat16)  # types of values; other types run without kernels
LOWERED_AS = {"gpu": "cuda", "tpu": "tpu"}  # platforms with kernels -> their names in lowering


def _run(
    operator: str,
    choice: KernelChoice,
    settings: Hashable,
    call: Callable[..., Array],
    arrays: Sequence[Array],
    on_tpu: bool = True,
) -> Array:
    """Runs `call(operator, *arrays)` with the chosen implementation or the best for the platform.

    Args:
      settings: everything that `call` depends on besides `arrays`.
      on_tpu: whether the TPU kernels support this call.
    """
    if choice.implementation not in (None, *IMPLEMENTATIONS):
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(
            f"{operator}: no implementation {choice.implementation!r}; there are {known}"
        )
    by_name = {
        name: functools.partial(call, getattr(module, operator))
        for name, module in IMPLEMENTATIONS.items()
    }
    if choice.deterministic:
        in_order = functools.partial(getattr(gpu, operator), deterministic=True)
        by_name["gpu"] = functools.partial(call, in_order)
    if choice.implementation:
        return by_name[choice.implementation](*arrays)
    where = platform()
    if where not in LOWERED_AS or arrays[0].dtype not in KERNEL_TYPES:
        return by_name["xla"](*arrays)
    if where == "tpu" and not on_tpu:
        return by_name["xla"](*arrays)
    if not compiles_here(operator, where, (settings, choice), by_name[where], arrays):
        return by_name["xla"](*arrays)
    # The executable may still be lowered for the CPU of a machine with a GPU or TPU.
    kernel = {LOWERED_AS[where]: by_name[where]}
    return lax.platform_dependent(*arrays, **kernel, default=by_name["xla"])


def dcnv3_group_multiple(implementation: str | None = None) -> int:
    """Returns the number whose multiples DCNv3 takes as group counts without copying the data.

    DCNv3 supports any number of groups; other numbers cost a copy.
    """
    by_kernel = implementation == "tpu" or (implementation is None and platform() == "tpu")
    return tpu_dcnv3.SUBLANES if by_kernel else 1


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
    return _run(
        "dcnv3",
        KernelChoice(implementation, deterministic),
        tuple(geometry.values()),
        lambda operator, *arrays: operator(*arrays, **geometry),
        (value, offset, mask),
        on_tpu=(kernel_size, stride, padding, dilation) == (3, 1, 1, 1)
        and tpu_dcnv3.fits(height, width, value.dtype),
    )


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

    fits = tpu_ms_deform_attn.fits(spatial_shapes, value.shape[-1], value.dtype)
    return _run(
        "ms_deform_attn", choice, spatial_shapes, call, (value, locations, weights), on_tpu=fits
    )
