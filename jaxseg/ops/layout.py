"""Fixes in which order a TPU stores the axes of a feature map.

A TPU keeps the last two axes in memory in tiles of 8 × 128, of sublanes and lanes. Without a hint,
XLA derives the layout of a whole model from the layout that convolutions of a few channels prefer.
It then puts the images of the batch into the sublanes. Two images fill a quarter of each tile, and
64 channels half of that.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from pallas_kernels import platform

LANES = 128

_free = contextvars.ContextVar("free", default=False)


@contextlib.contextmanager
def free_layouts() -> Iterator[None]:
    """Lets XLA choose all layouts while a function is traced, as for programs that are exported.

    The format of exported programs has no layouts of values.
    """
    token = _free.set(True)
    try:
        yield
    finally:
        _free.reset(token)


def fixes_layouts() -> bool:
    """Returns whether `fix_layout` fixes anything: for a TPU, unless layouts are free."""
    return platform() == "tpu" and not _free.get()


def columns_in_lanes(width: int, channels: int) -> bool:
    """Returns whether the columns of a map fill the lanes better than its channels do."""
    return _padded(width) < _padded(channels)


def fix_layout(x: Float[Array, "b h w c"], channels: bool = False) -> Float[Array, "b h w c"]:
    """Stores a map on a TPU with either its columns or its channels in the lanes.

    Values do not change. The gradient has the same layout. On other platforms this does nothing.

    Args:
      x: the map.
      channels: whether the channels are in the lanes in any case, as XLA's convolutions need it.
        Otherwise it is the axis that fills the lanes better.
    """
    if not fixes_layouts():
        return x
    *_, width, count = x.shape
    by_columns = not channels and columns_in_lanes(width, count)
    order = (0, 1, 3, 2) if by_columns else (0, 1, 2, 3)
    return with_layout_constraint(x, Layout(major_to_minor=order))


def fix_row_major(x: jax.Array) -> jax.Array:
    """Stores an array on a TPU or a GPU with its last axis innermost, as arguments of programs are.

    For gradients: without it, XLA lays out weights and moments as their gradient was computed, and
    copies three arrays before an update and three after it, in place of one.
    """
    if platform() == "cpu" or _free.get():
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _padded(size):
    """Returns the space that an axis takes in whole registers, as a multiple of its size."""
    return math.ceil(size / LANES) * LANES / size
