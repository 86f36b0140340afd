"""Sinusoidal position encodings of map cells (arXiv:1706.03762, in two dimensions)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TEMPERATURE = 10_000  # the longest wavelength, as a multiple of the map's size


def sine_positions(hw: Sequence[int], width: int) -> Float[Array, "h w c"]:
    """Returns the sinusoidal position encoding of every cell of a map.

    The first half of the channels encodes the row and the second half the column. Rows and columns
    count from 1 and are scaled so that the last one is 2π, as in the reference. The sine and the
    cosine of one wavelength are adjacent.

    Args:
      hw: height and width of the map.
      width: the number of channels, a multiple of four.
    """
    half = width // 2
    index = np.arange(half)
    exponents = (2 * (index // 2) / half).astype(np.float32)
    wavelengths = (TEMPERATURE ** exponents.astype(np.float64)).astype(np.float32)

    def along(size):
        places = np.arange(1, size + 1, dtype=np.float32)
        angles = places / (places[-1] + np.float32(1e-6)) * np.float32(2 * np.pi)
        # The angles are rounded to float32 as in the reference. Their sines are computed in
        # float64, so that they are the same on every machine.
        angles = (angles[:, None] / wavelengths).astype(np.float64)
        return np.where(index % 2, np.cos(angles), np.sin(angles)).astype(np.float32)

    # Both arrays are small. The whole map would be a large constant in the executable.
    rows, columns = along(hw[0])[:, None], along(hw[1])[None]
    sides = [jnp.broadcast_to(side, (*hw, half)) for side in (rows, columns)]
    return jnp.concatenate(sides, axis=-1)
