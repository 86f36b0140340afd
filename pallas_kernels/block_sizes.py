"""How the kernels for GPUs are launched: warps and output rows of a program, by device.

What `python -m pallas_kernels.bench --autotune` finds on a device goes into `TUNED`. Without an
entry a program has four warps, and every thread 16 bytes of contiguous channels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax

WARP = 32  # threads


class Kernel(NamedTuple):
    """What the best block size depends on."""

    name: str
    channels: int  # of a row, a power of two
    itemsize: int  # bytes of a channel


class BlockSize(NamedTuple):
    """The size of a program."""

    warps: int
    rows: int  # a power of two


# By device, as jax calls its kind. Empty: nothing has run on a GPU yet.
TUNED: dict[str, dict[Kernel, BlockSize]] = {}


def block_size(kernel: Kernel) -> BlockSize:
    """For the device that is traced for, which this machine need not have."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return TUNED.get(device.device_kind, {}).get(kernel) or default(kernel)


def default(kernel: Kernel) -> BlockSize:
    return _with_threads(kernel, warps=4, bytes_per_thread=16)  # the widest load there is


def candidates(kernel: Kernel) -> list[BlockSize]:
    """What is worth trying."""
    sizes = (_with_threads(kernel, warps, each) for warps in (1, 2, 4, 8) for each in (8, 16, 32))
    return list(dict.fromkeys(sizes))


def _with_threads(kernel, warps, bytes_per_thread):
    bytes_of_row = kernel.channels * kernel.itemsize
    return BlockSize(warps, max(1, warps * WARP * bytes_per_thread // bytes_of_row))


def fastest(times: Mapping[Kernel, Mapping[BlockSize, float]]) -> dict[Kernel, BlockSize]:
    return {kernel: min(by_size, key=by_size.get) for kernel, by_size in times.items()}
