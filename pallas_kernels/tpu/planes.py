"""Lays the groups of images out in a TPU's registers.

Lanes hold the columns of a group and sublanes hold eight groups, so that one vector instruction
serves all of them. The axes that loops count (rows of pixels, channels and points) come first.
*Planes* are [image, row, channel or point, group, column], with groups rounded up to eight and
columns to whole registers. In narrow images, several groups lie side by side in the lanes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

SUBLANES, LANES = 8, 128


def padded_groups(groups: int, width: int) -> int:
    """Returns the number of groups that fill whole registers, at least `groups`.

    Args:
      groups: the number of groups.
      width: the number of columns of an image.
    """
    multiple = SUBLANES * _side_by_side(groups, width)
    return -(-groups // multiple) * multiple


def _side_by_side(groups, width):
    """Returns how many groups lie side by side; it is the same for the padded number of groups."""
    return max(1, min(LANES // width, -(-groups // SUBLANES)))


def to_planes(x: Float[Array, "n h w g k"]) -> Float[Array, "n h k s l"]:
    """Converts images to planes.

    The last two axes of planes are multiples of the 8 sublanes and 128 lanes of a register.
    """
    n, height, width, groups, k = x.shape
    lanes = _side_by_side(groups, width) * width
    x = x.transpose(0, 1, 4, 3, 2)
    x = jnp.pad(x, ((0, 0),) * 3 + ((0, padded_groups(groups, width) - groups), (0, 0)))
    return jnp.pad(x.reshape(n, height, k, -1, lanes), ((0, 0),) * 4 + ((0, -lanes % LANES),))


def from_planes(x: Float[Array, "n h k s l"], shape: tuple[int, ...]) -> Float[Array, "n h w g k"]:
    """Converts planes back to images, the inverse of `to_planes`.

    Args:
      x: the planes.
      shape: the shape of the result.
    """
    n, height, width, groups, k = shape
    x = x[..., : _side_by_side(groups, width) * width].reshape(n, height, k, -1, width)
    return x[..., :groups, :].transpose(0, 1, 4, 3, 2)
