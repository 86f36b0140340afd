"""Launch sizes of the GPU kernels: the warps and output rows of a program, by device.

`python -m pallas_kernels.bench --autotune --write` measures the best sizes on a device. It writes
them into `tuned_block_sizes.json`, from which `TUNED` is read. Without an entry, a program has four
warps, and every thread handles 16 bytes of contiguous channels.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax

WARP = 32  # threads


class Kernel(NamedTuple):
    """Names everything that the best block size depends on.

    Attributes:
      name: the name of the kernel.
      channels: the channels of a row, a power of two.
      itemsize: the bytes of one channel.
    """

    name: str
    channels: int
    itemsize: int


class BlockSize(NamedTuple):
    """Holds the size of a program.

    Attributes:
      warps: the warps of a program.
      rows: the output rows of a program, a power of two.
    """

    warps: int
    rows: int


Sizes = dict[Kernel, BlockSize]
FILE = pathlib.Path(__file__).with_name("tuned_block_sizes.json")


def read(file: pathlib.Path = FILE) -> dict[str, Sizes]:
    """Reads the tuned sizes, by device kind as jax names it."""
    return {
        device: {
            Kernel(*(row[field] for field in Kernel._fields)): BlockSize(row["warps"], row["rows"])
            for row in rows
        }
        for device, rows in json.loads(file.read_text()).items()
    }


def write(device: str, sizes: Sizes, file: pathlib.Path) -> None:
    """Adds the tuned sizes of a device to the file; other entries of the file stay."""
    known = read(file)
    known[device] = known.get(device, {}) | sizes
    rows = {
        device: [{**kernel._asdict(), **size._asdict()} for kernel, size in sorted(found.items())]
        for device, found in sorted(known.items())
    }
    file.write_text(json.dumps(rows, indent=1) + "\n")


TUNED = read()


def block_size(kernel: Kernel) -> BlockSize:
    """Returns the block size of a kernel for the device that is traced for.

    That device may be absent from this machine.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return TUNED.get(device.device_kind, {}).get(kernel) or default(kernel)


def default(kernel: Kernel) -> BlockSize:
    """Returns the block size of a kernel that has no tuned entry."""
    return _with_threads(kernel, warps=4, bytes_per_thread=16)  # 16 bytes: the widest load


def candidates(kernel: Kernel) -> list[BlockSize]:
    """Returns the block sizes that are worth trying."""
    sizes = (_with_threads(kernel, warps, each) for warps in (1, 2, 4, 8) for each in (8, 16, 32))
    return list(dict.fromkeys(sizes))


def _with_threads(kernel, warps, bytes_per_thread):
    bytes_of_row = kernel.channels * kernel.itemsize
    return BlockSize(warps, max(1, warps * WARP * bytes_per_thread // bytes_of_row))


def fastest(times: Mapping[Kernel, Mapping[BlockSize, float]]) -> dict[Kernel, BlockSize]:
    """Returns the fastest block size of each kernel."""
    return {kernel: min(by_size, key=by_size.get) for kernel, by_size in times.items()}
