"""Where a cell lies in a map, as sines and cosines (arXiv:1706.03762, in two dimensions)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TEMPERATURE = 10_000  # the longest wavelength, in shares of the map


def sine_positions(hw: Sequence[int], width: int) -> Float[Array, "h w c"]:
    """The encoding of every cell: its row in the first half of `width`, its column in the second.

    Rows and columns count from 1 and are scaled so that the last is 2π, as in the reference; a sine
    and a cosine of one wavelength lie side by side. `width` is a multiple of four.
    """
    half = width // 2
    index = np.arange(half)
    exponents = (2 * (index // 2) / half).astype(np.float32)
    wavelengths = (TEMPERATURE ** exponents.astype(np.float64)).astype(np.float32)

    def along(size):
        places = np.arange(1, size + 1, dtype=np.float32)
        angles = places / (places[-1] + np.float32(1e-6)) * np.float32(2 * np.pi)
        # The angles are rounded as in the reference; their sines are the same on every machine.
        angles = (angles[:, None] / wavelengths).astype(np.float64)
        return np.where(index % 2, np.cos(angles), np.sin(angles)).astype(np.float32)

    # Both sides are small; the map of them would be a large constant in the program.
    rows, columns = along(hw[0])[:, None], along(hw[1])[None]
    sides = [jnp.broadcast_to(side, (*hw, half)) for side in (rows, columns)]
    return jnp.concatenate(sides, axis=-1)
