"""Resizes tables of relative positions to another window, as the reference does for BEiT weights.

A table for a window of h × w patches has one row for every offset between two patches. These are
(2h − 1)(2w − 1) rows in row-major order. Three rows for the class token follow: to patches, from
patches, and to itself.

Along each side of the window, a cubic spline goes through the offsets. Their spacing grows towards
the edge (`source_offsets`). The spline is read at the integer offsets of the new window. The source
is BEiT (arXiv:2106.08254). `jaxseg.ops.resize.resize_bicubic` resizes tables of absolute positions.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from jaxseg.errors import CheckpointError
from pallas_kernels.relative_positions import OF_CLASS_TOKEN


def resize_relative(
    table: Float[np.ndarray, "rows heads"], from_hw: Sequence[int], hw: Sequence[int]
) -> Float[np.ndarray, "out_rows heads"]:
    """Resizes a table to another window and leaves the rows of the class token unchanged.

    Args:
      table: the table of the window `from_hw`.
      from_hw: height and width of its window, in patches.
      hw: height and width of the new window, in patches.
    """
    patches, of_class = table[:-OF_CLASS_TOKEN], table[-OF_CLASS_TOKEN:]
    along_h, along_w = map(spline_matrix, from_hw, hw)
    grid = patches.reshape(along_h.shape[1], along_w.shape[1], -1)
    resized = np.einsum("Hh,Ww,hwn->HWn", along_h, along_w, grid, optimize=True)
    return np.concatenate([resized.reshape(-1, grid.shape[2]).astype(table.dtype), of_class])


def square_window(rows: int) -> tuple[int, int]:
    """Returns the window of a table, which must be square, as in all published files.

    Args:
      rows: the number of rows of the table.

    Returns:
      Height and width of the window, in patches.

    Raises:
      CheckpointError: if the window is not square.
    """
    offsets = math.isqrt(max(rows - OF_CLASS_TOKEN, 0))
    if offsets % 2 == 0 or offsets**2 + OF_CLASS_TOKEN != rows:
        raise CheckpointError(
            f"A table of {rows} relative positions does not belong to a square window, which has "
            f"(2n - 1)² + {OF_CLASS_TOKEN} of them for n by n patches."
        )
    return (offsets // 2 + 1,) * 2


def spline_matrix(size: int, out_size: int) -> np.ndarray:
    """Returns the matrix that resizes a table along one side of its window by a cubic spline.

    Beyond the outermost offset, the spline keeps its value there.

    Args:
      size: the length of the side, in patches.
      out_size: the length of the side of the new window, in patches.

    Returns:
      float64 [2 out_size − 1, 2 size − 1].
    """
    if size == out_size:
        return np.eye(2 * size - 1)
    offsets = source_offsets(size, out_size)
    wanted = np.arange(1 - out_size, out_size)
    return CubicSpline(offsets, np.eye(len(offsets)))(np.clip(wanted, offsets[0], offsets[-1]))


def source_offsets(size: int, out_size: int) -> np.ndarray:
    """Returns where the offsets of a table lie among those of the new window, float64 [2 size − 1].

    They are …, −1 − q, −1, 0, 1, 1 + q, 1 + q + q², …. The factor q is chosen so that the last one
    is out_size − 1. It is at least 1.01 and at most 1.5. The lower bound makes a smaller window get
    the middle of the table rather than all of it.

    Args:
      size: the length of one side of the table's window, in patches.
      out_size: the length of that side of the new window, in patches.
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
