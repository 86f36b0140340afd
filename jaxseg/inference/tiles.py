"""From the logits of views to the probabilities of an image: tile by tile, over the devices.

An image may be of any size, and its [h, w, k] array of logits need not fit anywhere. A tile has one
size, so these programs are compiled once per number of classes and per bucket of how many logits a
tile depends on.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxseg.inference.sliding_window import AxisPlan, as_slice

TILE = 256  # pixels of an image along either side
# Scores along a side that a tile depends on: enough for one window at the size of the image, whose
# logits have stride 4; then one half more each time, up to 31 thousand.
BUCKETS = [72 * 3**k // 2**k for k in range(16)]


class Band(NamedTuple):
    """What a view says about some rows of an image, at most `TILE`.

    Attributes:
      weight: how many views it stands for.
      rows: from rows of logits to rows of the image.
      logits: of the windows of the view, side by side.
      columns: from columns of logits to those of the image.
    """

    weight: int
    rows: Float[np.ndarray, "out p"]
    logits: Float[np.ndarray, "p q k"]
    columns: AxisPlan


def probabilities(
    bands: Sequence[Band], width: int, devices: tuple[jax.Device, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Columns of the image, and class probabilities there: float32 [rows, columns, k]."""
    return _tiles(bands, width, devices, _mean)


def classes(
    bands: Sequence[Band], width: int, devices: tuple[jax.Device, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Columns of the image, and the class of every pixel there: uint8 [rows, columns]."""
    return _tiles(bands, width, devices, _most_probable)


def _tiles(bands, width, devices, finish):
    """Softmax per view, then the mean over views, as in the reference."""
    mesh = _mesh_of(devices)
    height, num_classes = bands[0].rows.shape[0], bands[0].logits.shape[-1]
    for first in range(0, width, TILE * mesh.size):
        starts = range(first, min(first + TILE * mesh.size, width), TILE)
        shape = (mesh.size, TILE, TILE, num_classes)
        total = jnp.zeros(shape, jnp.float32, device=NamedSharding(mesh, P("tile")))
        for band in bands:
            rows, logits, columns = _padded(band, starts, mesh.size)
            total = _add(
                mesh,
                total,
                np.float32(band.weight),
                jax.device_put(rows, NamedSharding(mesh, P())),
                _split(logits, mesh),
                _split(columns, mesh),
            )
        tiles = np.asarray(finish(total, np.float32(sum(band.weight for band in bands))))
        for start, tile in zip(starts, tiles, strict=False):  # the rest is filling
            stop = min(start + TILE, width)
            yield slice(start, stop), tile[:height, : stop - start]


def _padded(band, starts, count):
    """What the tiles that begin at `starts` depend on, [T, n], [count, n, n, k] and [count, T, n].

    Filled up with zeros to `count` tiles of `TILE` pixels, and n to the next of `BUCKETS`.
    """
    parts = [band.columns.part(start, start + TILE) for start in starts]
    longest = max(len(band.logits), *(len(places) for places, _ in parts))
    length = next(bucket for bucket in BUCKETS if bucket >= longest)
    rows = np.zeros((TILE, length), np.float32)
    rows[: band.rows.shape[0], : band.rows.shape[1]] = band.rows
    logits = np.zeros((count, length, length, band.logits.shape[-1]), np.float32)
    columns = np.zeros((count, TILE, length), np.float32)
    for tile, (places, matrix) in enumerate(parts):
        logits[tile, : len(band.logits), : len(places)] = band.logits[:, as_slice(places)]
        columns[tile, : matrix.shape[0], : len(places)] = matrix
    return rows, logits, columns


@functools.cache
def _mesh_of(devices):
    return jax.make_mesh((len(devices),), ("tile",), axis_types=(AxisType.Auto,), devices=devices)


def _split(array, mesh):
    """Over the devices, without a compiled program for every shape, as `jax.device_put` has."""
    sharding = NamedSharding(mesh, P("tile"))
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(
    mesh: Mesh,
    total: Float[Array, "t y x k"],
    weight: Float[Array, ""],
    rows: Float[Array, "y n"],
    logits: Float[Array, "t n m k"],
    columns: Float[Array, "t x m"],
) -> Float[Array, "t y x k"]:
    einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    logits = einsum("txm,tymk->tyxk", columns, einsum("yn,tnmk->tymk", rows, logits))
    total += weight * jax.nn.softmax(logits, axis=-1)
    return lax.with_sharding_constraint(total, NamedSharding(mesh, P("tile")))


@jax.jit
def _mean(total, weight):
    return total / weight


@jax.jit
def _most_probable(total, weight):
    return jnp.argmax(total / weight, axis=-1).astype(jnp.uint8)
