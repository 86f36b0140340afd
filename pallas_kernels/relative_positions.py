"""The relative position bias of BEiT (arXiv:2106.08254): a table by displacement of two patches.

The table has one row for every displacement (dy, dx) of a query from a key, dx fastest, each from
1 − size to size − 1. Its last three rows are for the class token as query of patches, as key of
patches, and for itself. Tokens are the class token and then the patches, row after row.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

OF_CLASS_TOKEN = 3  # rows of the table


def table_rows(grid: Sequence[int]) -> int:
    """Returns the number of rows of the table for a grid of (height, width) patches."""
    height, width = grid
    return (2 * height - 1) * (2 * width - 1) + OF_CLASS_TOKEN


def relative_position_index(grid: Sequence[int]) -> np.ndarray:
    """Returns the row of the table for every pair of a query and a key.

    Args:
      grid: height and width of the grid, in patches.

    Returns:
      int [1 + n, 1 + n] for n patches.
    """
    height, width = grid
    y, x = np.divmod(np.arange(height * width), width)
    dy = y[:, None] - y[None] + height - 1
    dx = x[:, None] - x[None] + width - 1
    to_patch, from_patch, of_token = table_rows(grid) - OF_CLASS_TOKEN + np.arange(OF_CLASS_TOKEN)
    index = np.full((1 + height * width,) * 2, to_patch)
    index[1:, 1:] = dy * (2 * width - 1) + dx
    index[1:, 0] = from_patch
    index[0, 0] = of_token
    return index


def by_displacement(
    table: Float[Array, "rows g"], grid: Sequence[int]
) -> tuple[Float[Array, "g dy dx"], Float[Array, "3 g"]]:
    """Splits a table into that of the patches, by displacement, and the rows of the class token.

    Args:
      table: the bias of every displacement and of the class token, for `g` heads.
      grid: height and width of the grid, in patches.
    """
    height, width = grid
    patches = table[:-OF_CLASS_TOKEN].T.reshape(-1, 2 * height - 1, 2 * width - 1)
    return patches, table[-OF_CLASS_TOKEN:]


def bias_of_pairs(table: Float[Array, "rows g"], grid: Sequence[int]) -> Float[Array, "g n n"]:
    """Returns the bias of every pair of tokens, in the order of `relative_position_index`.

    The biases are slices of the table. If the displacements are reversed, those from one row (or
    column) of patches to all others are contiguous. A lookup would store the index of every pair in
    the executable, and its gradient would sum the pairs one by one.

    Args:
      table: the bias of every displacement and of the class token, for `g` heads.
      grid: height and width of the grid, in patches.
    """
    height, width = grid
    pairs, (to_patch, from_patch, of_token) = by_displacement(table, grid)
    heads, pairs = len(pairs), pairs[:, ::-1, ::-1]
    pairs = [pairs[:, :, width - 1 - x : 2 * width - 1 - x] for x in range(width)]
    pairs = jnp.stack(pairs, axis=1)
    pairs = [pairs[:, :, height - 1 - y : 2 * height - 1 - y] for y in range(height)]
    n = height * width
    pairs = jnp.stack(pairs, axis=1).reshape(heads, n, n)

    def repeated(values, *shape):
        return jnp.broadcast_to(values[:, None, None], (heads, *shape))

    of_class = jnp.concatenate([repeated(of_token, 1, 1), repeated(to_patch, 1, n)], axis=2)
    of_patches = jnp.concatenate([repeated(from_patch, n, 1), pairs], axis=2)
    return jnp.concatenate([of_class, of_patches], axis=1)
