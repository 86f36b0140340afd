"""Rotary positions on a grid of patches (arXiv:2104.09864), as in DINOv3 (arXiv:2508.10104).

The coordinates of a patch are those of its center, from -1 to 1. Each of them turns a quarter of
the channels of a head by angles 2π · coordinate / period, and another quarter with them.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NORMALIZATIONS = ("separate", "max", "min")


def rotary_periods(
    head_width: int, base: float = 100.0, limits: tuple[float, float] | None = None
) -> Float[np.ndarray, " q"]:
    """Returns the periods of the quarter of a head's channels, in float32.

    Args:
      head_width: the number of channels of a head, a multiple of 4.
      base: the ratio by which the periods grow over all channels, from 1.
      limits: the least and the greatest period in place of `base`, with equal ratios between.
    """
    quarter = head_width // 4
    if limits is None:
        exponents = 2 * np.arange(quarter, dtype=np.float32) / np.float32(head_width // 2)
        return np.float32(base) ** exponents
    least, greatest = map(np.float32, limits)
    return least * (greatest / least) ** np.linspace(0, 1, quarter, dtype=np.float32)


def patch_coordinates(hw: Sequence[int], normalize: str = "separate") -> Float[np.ndarray, "n 2"]:
    """Returns the coordinates (y, x) of the patches of a grid, row after row, from -1 to 1.

    Args:
      hw: height and width of the grid, in patches.
      normalize: what -1 and 1 are: the edges of the grid along each axis ("separate"), or of a
        square with its longer ("max") or its shorter ("min") side.

    Raises:
      ValueError: if `normalize` is not one of `NORMALIZATIONS`.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r}: must be one of {', '.join(NORMALIZATIONS)}")
    sides = {"separate": hw, "max": (max(hw),) * 2, "min": (min(hw),) * 2}[normalize]
    centers = [
        np.arange(0.5, count, dtype=np.float32) / np.float32(side)
        for count, side in zip(hw, sides, strict=True)
    ]
    grid = np.stack(np.meshgrid(*centers, indexing="ij"), axis=-1)
    return 2 * grid.reshape(-1, 2) - 1


def rotary_table(
    coordinates: Float[Array | np.ndarray, "n 2"], periods: Float[Array | np.ndarray, " q"]
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Returns the sines and cosines of the angles of all patches and channels, in float32.

    Args:
      coordinates: (y, x) of the patches.
      periods: the periods of a quarter of the channels.
    """
    angles = 2 * jnp.pi * coordinates[:, :, None] / periods
    angles = jnp.tile(angles.reshape(len(coordinates), -1), 2)
    return jnp.sin(angles), jnp.cos(angles)


def rotate(
    x: Float[Array, "b n g d"], sin: Float[Array, "m d"], cos: Float[Array, "m d"]
) -> Float[Array, "b n g d"]:
    """Turns the queries or the keys of the last `m` tokens; the tokens before them stay.

    Channel j turns with channel j + d/2. The products are in float32, as the table.

    Args:
      x: queries or keys of `g` heads.
      sin: sines of the angles, from `rotary_table`.
      cos: cosines of the angles.
    """
    prefix, patches = jnp.split(x, [x.shape[1] - len(sin)], axis=1)
    first, second = jnp.split(patches.astype(sin.dtype), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    sin, cos = sin[:, None], cos[:, None]
    patches = jnp.concatenate([first, second], axis=-1) * cos + turned * sin
    return jnp.concatenate([prefix, patches.astype(x.dtype)], axis=1)
