"""Chooses colors for a user's own classes, which can be told apart by most people.

Each color is the one of a grid that is farthest from all colors before it. The distance of two
colors is that in CIELAB, for the vision that tells them apart least: normal vision, or one without
a kind of cone, as modelled by Machado, Oliveira and Fernandes (2009,
doi:10.1109/TVCG.2009.113).
"""

import functools
from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxseg.reporting.visualize import IGNORED, WRONG

Color = tuple[int, int, int]

# Linear RGB as it is seen without long, middle and short wavelength cones.
VISIONS = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ],
    np.float32,
)
LEVELS = (0, 43, 85, 128, 170, 213, 255)  # of the red, green and blue of the grid
# What pictures of errors have, and how far all colors are from it in normal vision.
TAKEN = {WRONG: 60.0, IGNORED: 25.0}
LIGHTNESS = (28.0, 93.0)  # of all colors; darker and lighter ones are lost in photographs


def class_colors(count: int, given: Mapping[int, Color]) -> UInt8[np.ndarray, "k 3"]:
    """Returns a color for every class, in RGB.

    Args:
      count: the number of classes.
      given: the colors of some classes, which they keep.
    """
    chosen = _farthest(count - len(given), tuple(sorted(given.values())))
    rest = iter(chosen)
    colors = [given[k] if k in given else next(rest) for k in range(count)]
    return np.array(colors, np.uint8).reshape(count, 3)


@functools.lru_cache(16)
def _farthest(count: int, given: tuple[Color, ...]) -> tuple[Color, ...]:
    grid = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = as_seen(grid)
    allowed = (LIGHTNESS[0] <= seen[0, :, 0]) & (seen[0, :, 0] <= LIGHTNESS[1])
    for color, least in TAKEN.items():
        allowed &= np.linalg.norm(seen[0] - as_seen(np.array([color]))[0], axis=-1) >= least
    grid, seen = grid[allowed], seen[:, allowed]
    nearest = np.full(len(grid), np.inf)
    for color in given:
        nearest = np.minimum(nearest, _distances(seen, as_seen(np.array([color]))))
    chosen = []
    for _ in range(count):
        # Without any color yet, the most colorful one is the first.
        scores = nearest if np.isfinite(nearest).all() else np.linalg.norm(seen[0, :, 1:], axis=-1)
        best = int(np.argmax(scores))
        chosen.append(tuple(int(level) for level in grid[best]))
        nearest = np.minimum(nearest, _distances(seen, seen[:, best : best + 1]))
        if not nearest.max():  # more classes than colors: the colors begin again
            nearest[:] = np.inf
    return tuple(chosen)


def _distances(seen, color):
    """Returns how far colors are from one, for the vision that tells them apart least."""
    return np.linalg.norm(seen - color, axis=-1).min(axis=0)


def as_seen(colors: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, "4 n 3"]:
    """Returns RGB colors in CIELAB, as each vision in `VISIONS` sees them."""
    values = colors.astype(np.float32) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.einsum("vij,nj->vni", VISIONS, linear), 0, 1).astype(np.float32)
    return cv2.cvtColor(linear, cv2.COLOR_LRGB2LAB)
