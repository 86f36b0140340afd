"""The biases of relative positions as the GPU kernels read them: one entry of a table per pair.

A token has a position as a query and one as a key. The entry of a pair is the difference of the
two. Neighboring pairs have neighboring entries, so that a block of pairs reads few lines of the
cache. Patch (y, x) of a grid is at y · (2 · width − 1) + x, from 0 to the *reach* of the grid. The
class token is so far away, as a query and as a key, that its pairs have entries of their own.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from pallas_kernels.relative_positions import by_displacement

LOG2E = float(np.log2(np.e))


def _reach(grid):
    height, width = grid
    return (height - 1) * (2 * width - 1) + width - 1


def entries(table: Float[Array, "rows g"], grid: Sequence[int]) -> Float[Array, "g entries"]:
    """Returns the table that the kernels read, in base-2 logarithms.

    The entries of the patches are those of the table. Behind them are copies of the three biases of
    the class token, for the patches as queries, the patches as keys, and the token itself.

    Args:
      table: the bias of every displacement and of the class token, for `g` heads.
      grid: height and width of the grid, in patches.
    """
    patches, (to_patch, from_patch, of_token) = by_displacement(table, grid)
    heads, reach = len(patches), _reach(grid)
    copies = (from_patch, reach + 1), (to_patch, 2 * reach + 1), (of_token, 1)
    copies = [jnp.broadcast_to(bias[:, None], (heads, times)) for bias, times in copies]
    return LOG2E * jnp.concatenate([patches.reshape(heads, -1), *copies], axis=1)


def entries_of_pairs(
    query: Integer[Array, " m"], key: Integer[Array, " n"], grid: Sequence[int]
) -> Integer[Array, "m n"]:
    """Returns the entry of every pair of two tokens; those past the last one repeat it."""
    height, width = grid
    reach = _reach(grid)

    def positions(token, of_class):
        patch = jnp.minimum(token, height * width) - 1
        position = lax.div(patch, width) * (2 * width - 1) + lax.rem(patch, width)
        return jnp.where(token == 0, of_class, position)

    key = positions(key, of_class=-1 - reach)
    return positions(query, of_class=3 * reach + 2)[:, None] + reach - key[None]


def sum_by_displacement(
    of_pairs: Float[Array, "g dy m m"], width: int
) -> Float[Array, "g displacements"]:
    """Returns the sums over all pairs of columns with one displacement.

    Args:
      of_pairs: a value for each displacement in y and pair of columns, some of them past the width.
      width: the number of columns of the grid.
    """
    # With the keys reversed, i + j is the displacement. If a row of 2·width values is read as one
    # of 2·width − 1, row i moves to the right by i.
    pairs = of_pairs[:, :, :width, :width][..., ::-1]
    pairs = jnp.pad(pairs, ((0, 0),) * 3 + ((0, width),))
    pairs = pairs.reshape(*pairs.shape[:2], -1)[..., : width * (2 * width - 1)]
    return pairs.reshape(*pairs.shape[:2], width, -1).sum(axis=2).reshape(len(pairs), -1)
