"""Tables of relative positions, resized to another window: what the reference does when it loads a
BEiT. (For tables of absolute positions see `jaxseg.ops.resize.resize_bicubic`.)

A table has a row for every offset between two patches of its window of h × w, (2h − 1)(2w − 1) of
them row by row, and three for the class token: to patches, from patches, and to itself. Along each
side a cubic spline goes through the offsets, which are set apart ever wider towards the edge
(`source_offsets`), and is read at the whole offsets of the new window. BEiT, arXiv:2106.08254.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from jaxseg.errors import CheckpointError

OF_CLASS_TOKEN = 3  # the last rows


def resize_relative(
    table: Float[np.ndarray, "rows heads"], from_hw: Sequence[int], hw: Sequence[int]
) -> Float[np.ndarray, "out_rows heads"]:
    """The table of a window for another; the rows of the class token stay as they are."""
    patches, of_class = table[:-OF_CLASS_TOKEN], table[-OF_CLASS_TOKEN:]
    along_h, along_w = map(spline_matrix, from_hw, hw)
    grid = patches.reshape(along_h.shape[1], along_w.shape[1], -1)
    resized = np.einsum("Hh,Ww,hwn->HWn", along_h, along_w, grid, optimize=True)
    return np.concatenate([resized.reshape(-1, grid.shape[2]).astype(table.dtype), of_class])


def square_window(rows: int) -> tuple[int, int]:
    """The window of a table, if it is square, as those of all published files are.

    Raises CheckpointError where it is not.
    """
    offsets = math.isqrt(max(rows - OF_CLASS_TOKEN, 0))
    if offsets % 2 == 0 or offsets**2 + OF_CLASS_TOKEN != rows:
        raise CheckpointError(
            f"A table of {rows} relative positions is not of a square window, which has "
            f"(2n - 1)² + {OF_CLASS_TOKEN} of them for n by n patches."
        )
    return (offsets // 2 + 1,) * 2


def spline_matrix(size: int, out_size: int) -> np.ndarray:
    """The [2 out_size − 1, 2 size − 1] matrix of the spline along one side of that many patches.

    Beyond the outermost offset the spline stays at its value there.
    """
    if size == out_size:
        return np.eye(2 * size - 1)
    offsets = source_offsets(size, out_size)
    wanted = np.arange(1 - out_size, out_size)
    return CubicSpline(offsets, np.eye(len(offsets)))(np.clip(wanted, offsets[0], offsets[-1]))


def source_offsets(size: int, out_size: int) -> np.ndarray:
    """float64 [2 size − 1]: …, −1 − q, −1, 0, 1, 1 + q, 1 + q + q², …; the last is out_size − 1.

    q is at least 1.01, so that a smaller window gets the middle of the table rather than all of it,
    and at most 1.5.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q ** (size - 1)) / (1 - q) > out_size - 1:
            high = q
        else:
            low = q
    outward = np.cumsum(q ** np.arange(size - 1))
    return np.concatenate([-outward[::-1], [0], outward])
