"""Turns logits into classes on the devices that hold them, for images that are seen once and whole.

Nothing has to be averaged for such an image: it has one view, and the view has one window. Its
logits stay on the device, and only the class of every pixel leaves it. All other images take
`jaxseg.inference.tiles`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8

from jaxseg.distributed.sharding import map_over_batch
from jaxseg.inference.sliding_window import AxisPlan
from jaxseg.inference.tiles import TILE, padded_length

COUNTS = sorted(n for k in range(20) for n in (2**k, 3 * 2**k))  # of tiles: 1 2 3 4 6 8 12 16


class AxisTiles(NamedTuple):
    """Maps logits to the pixels of every tile along one axis of some images.

    Attributes:
      starts: the first of the n logits that each tile depends on.
      matrices: for each tile, the matrix that maps its n logits to its pixels.
    """

    starts: Int32[np.ndarray, "b tiles"]
    matrices: Float[np.ndarray, "b tiles out n"]


def plan_tiles(plans: Sequence[AxisPlan], num_logits: int) -> AxisTiles:
    """Plans the tiles along one axis of some images.

    Both the number of tiles and n are rounded up, so that images of many sizes have few shapes. The
    additional tiles, and the pixels beyond the image, have zeros in their matrices.

    Args:
      plans: the plan of the axis for each image. All have one window.
      num_logits: number of logits along the axis, with those of the padding.
    """
    parts_of = [
        [plan.part(start, start + TILE) for start in range(0, plan.matrix.shape[0], TILE)]
        for plan in plans
    ]
    longest = max(int(np.ptp(places)) + 1 for parts in parts_of for places, _ in parts)
    length = min(padded_length(longest), num_logits)
    most = max(map(len, parts_of))
    count = next(count for count in COUNTS if count >= most)
    starts = np.zeros((len(plans), count), np.int32)
    matrices = np.zeros((len(plans), count, TILE, length), np.float32)
    for image, parts in enumerate(parts_of):
        for tile, (places, matrix) in enumerate(parts):
            start = min(places[0], num_logits - length)
            starts[image, tile] = start
            matrices[image, tile, : len(matrix)][:, places - start] = matrix
    return AxisTiles(starts, matrices)


@jax.jit
def classes_of_tiles(
    logits: Float[Array, "b p q k"],
    row_starts: Int32[Array, "b r"],
    row_matrices: Float[Array, "b r y n"],
    column_starts: Int32[Array, "b c"],
    column_matrices: Float[Array, "b c x m"],
) -> UInt8[Array, "b r c y x"]:
    """Returns the most probable class of every pixel of every tile.

    One tile is computed at a time, so that no array has the size of an image and all classes.

    Args:
      logits: the logits of images, at the stride of the head.
      row_starts: `AxisTiles.starts` of the rows of each image.
      row_matrices: `AxisTiles.matrices` of the rows of each image.
      column_starts: as `row_starts`, of the columns.
      column_matrices: as `row_matrices`, of the columns.
    """
    operands = row_starts, row_matrices, column_starts, column_matrices
    return map_over_batch(_classes_of_images)(logits, *operands)


def _classes_of_images(logits, row_starts, row_matrices, column_starts, column_matrices):
    einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def tile(image, row, column):
        (top, down), (left, across) = row, column
        shape = down.shape[1], across.shape[1], image.shape[-1]
        part = lax.dynamic_slice(image, (top, left, 0), shape)
        found = einsum("xm,ymk->yxk", across, einsum("yn,nmk->ymk", down, part))
        # As in `tiles`: of classes whose probabilities are equal once rounded, the first is taken.
        return jnp.argmax(jax.nn.softmax(found, axis=-1), axis=-1).astype(jnp.uint8)

    def image(operands):
        logits, rows, columns = operands
        return lax.map(lambda row: lax.map(lambda column: tile(logits, row, column), columns), rows)

    rows, columns = (row_starts, row_matrices), (column_starts, column_matrices)
    return lax.map(image, (logits, rows, columns))


def join_tiles(
    tiles: UInt8[np.ndarray, "r c y x"], hw: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Joins the tiles of an image of this (height, width) to its class map."""
    count_y, count_x, height, width = tiles.shape
    joined = tiles.transpose(0, 2, 1, 3).reshape(count_y * height, count_x * width)
    return np.ascontiguousarray(joined[: hw[0], : hw[1]])
