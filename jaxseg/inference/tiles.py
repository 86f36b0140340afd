"""Turns the logits of views into class probabilities of an image, tile by tile over the devices.

An image may have any size, and its [h, w, k] array of logits need not fit into memory. All tiles
have the same size. The executables are therefore compiled once per number of classes and per bucket
of the number of logits that a tile depends on.
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

TILE = 256  # pixels of an image along either axis
# Numbers of logits along one axis that a tile may depend on. The first suffices for one window at
# image size whose logits have stride 4. Each next one is 1.5 times as large, up to 31 thousand.
BUCKETS = [72 * 3**k // 2**k for k in range(16)]


class Band(NamedTuple):
    """Holds the logits of one view for at most `TILE` rows of an image.

    Attributes:
      weight: number of identical views that this one represents; if several models are averaged,
        a multiple of it.
      rows: the matrix that maps rows of logits to rows of the image.
      logits: the logits of the windows of the view, concatenated.
      columns: the plan that maps columns of logits to columns of the image.
    """

    weight: int
    rows: Float[np.ndarray, "out p"]
    logits: Float[np.ndarray, "p q k"]
    columns: AxisPlan


def probabilities(
    bands: Sequence[Band], width: int, devices: tuple[jax.Device, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the class probabilities of some rows of an image, tile by tile.

    Args:
      bands: the bands of all views for these rows.
      width: width of the image.
      devices: the devices to compute on, one tile each.

    Yields:
      A slice of columns, and their probabilities, float32 [rows, columns, k].
    """
    return _tiles(bands, width, devices, _mean)


def classes(
    bands: Sequence[Band], width: int, devices: tuple[jax.Device, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the most probable class of every pixel of some rows of an image, tile by tile.

    Args:
      bands: the bands of all views for these rows.
      width: width of the image.
      devices: the devices to compute on, one tile each.

    Yields:
      A slice of columns, and their classes, uint8 [rows, columns].
    """
    return _tiles(bands, width, devices, _most_probable)


def _tiles(bands, width, devices, finish):
    """Applies softmax per view and averages over views, as in the reference."""
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
        for start, tile in zip(starts, tiles, strict=False):  # the remaining tiles are padding
            stop = min(start + TILE, width)
            yield slice(start, stop), tile[:height, : stop - start]


def _padded(band, starts, count):
    """Returns the row matrix, logits and column matrices of the tiles that begin at `starts`.

    Their shapes are [T, n], [count, n, n, k] and [count, T, n], where T is `TILE`. They are padded
    with zeros to `count` tiles, to `TILE` pixels, and to n logits, one of `BUCKETS`.
    """
    parts = [band.columns.part(start, start + TILE) for start in starts]
    longest = max(len(band.logits), *(len(places) for places, _ in parts))
    length = padded_length(longest)
    rows = np.zeros((TILE, length), np.float32)
    rows[: band.rows.shape[0], : band.rows.shape[1]] = band.rows
    logits = np.zeros((count, length, length, band.logits.shape[-1]), np.float32)
    columns = np.zeros((count, TILE, length), np.float32)
    for tile, (places, matrix) in enumerate(parts):
        logits[tile, : len(band.logits), : len(places)] = band.logits[:, as_slice(places)]
        columns[tile, : matrix.shape[0], : len(places)] = matrix
    return rows, logits, columns


def padded_length(length: int) -> int:
    """Returns the number of `BUCKETS` that this number of logits is padded to."""
    return next(bucket for bucket in BUCKETS if bucket >= length)


@functools.cache
def _mesh_of(devices):
    return jax.make_mesh((len(devices),), ("tile",), axis_types=(AxisType.Auto,), devices=devices)


def _split(array, mesh):
    """Shards an array over the devices along its first axis.

    `jax.device_put` would compile an executable for every shape.
    """
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
