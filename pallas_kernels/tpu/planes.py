"""Lays the groups of images out in a TPU's registers.

An *instance* is one group of one image. Lanes hold the columns of an instance and sublanes hold
eight instances, so that one vector instruction serves all of them. The axes that loops count (rows
of pixels, channels and points) come first. *Planes* are [image, row, channel or point, group,
column], with groups rounded up to eight and columns to whole registers. Narrow images are *folded*:
several instances, of any image, lie side by side in the lanes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

SUBLANES, LANES = 8, 128


def to_planes(x: Float[Array, "n h w g k"]) -> Float[Array, "b h k s l"]:
    """Converts images to planes: wide ones by a transpose, narrow ones by folding.

    The last two axes of planes are multiples of the 8 sublanes and 128 lanes of a register.
    """
    x = x.transpose(0, 1, 4, 3, 2)
    if x.shape[-1] <= LANES // 2:
        x = _fold(x)
    groups, width = x.shape[-2:]
    return jnp.pad(x, ((0, 0),) * 3 + ((0, -groups % SUBLANES), (0, -width % LANES)))


def from_planes(x: Float[Array, "b h k s l"], shape: tuple[int, ...]) -> Float[Array, "n h w g k"]:
    """Converts planes back to images, the inverse of `to_planes`.

    Args:
      x: the planes.
      shape: the shape of the result.
    """
    n, _, width, groups, _ = shape
    x = x[..., :groups, :width] if width > LANES // 2 else _unfold(x, n, groups, width)
    return x.transpose(0, 1, 4, 3, 2)


def _fold(x: Float[Array, "n h k g w"]) -> Float[Array, "b h k 8 fw"]:
    """Puts the groups of all images side by side in the lanes, f at a time."""
    n, height, k, groups, width = x.shape
    side_by_side = LANES // width
    x = x.transpose(0, 3, 1, 2, 4).reshape(n * groups, height, k, width)
    x = jnp.pad(x, ((0, -len(x) % (SUBLANES * side_by_side)), (0, 0), (0, 0), (0, 0)))
    x = x.reshape(-1, SUBLANES, side_by_side, height, k, width)
    return x.transpose(0, 3, 4, 1, 2, 5).reshape(-1, height, k, SUBLANES, side_by_side * width)


def _unfold(x: Float[Array, "b h k 8 l"], n, groups, width) -> Float[Array, "n h k g w"]:
    _, height, k, _, _ = x.shape
    side_by_side = LANES // width
    x = x[..., : side_by_side * width].reshape(-1, height, k, SUBLANES, side_by_side, width)
    x = x.transpose(0, 3, 4, 1, 2, 5).reshape(-1, height, k, width)[: n * groups]
    return x.reshape(n, groups, height, k, width).transpose(0, 2, 3, 1, 4)
