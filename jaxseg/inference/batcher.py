"""A model in evaluation mode: pieces of images in batches of a few shapes, over all devices."""

import functools
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from jaxseg.distributed.sharding import BATCH_SPEC, put_batch
from jaxseg.models import segmentor

Run = Callable[[Any, Float[Array, "b h w 3"]], Float[Array, "b p q k"]]


@functools.cache
def compile_forward(model: segmentor.Segmentor, outputs: int | None, mesh: Mesh) -> Run:
    """(variables, images) -> scores at the stride of the head, compiled once per shape.

    Of the first `outputs` outputs of the head, or of all: some published heads have more outputs
    than their dataset has classes.
    """

    def run(variables, images):
        scores = segmentor.apply(model, variables, images)[0].logits[..., :outputs]
        return scores.astype(jnp.float32)

    return jax.jit(run, out_shardings=NamedSharding(mesh, BATCH_SPEC))


class Crop:
    """A piece of an image on its way through the network.

    Attributes:
      waiting: True until it is part of a batch.
      scores: once that batch is through.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.waiting, self.scores = shape, True, None


class Batcher:
    """Collects pieces by shape and runs them when a batch of a shape is full.

    A batch has as many pieces on every device, and is filled up with zeros where it has to run
    before it is full: so there is one compiled program per shape of pieces. Two batches at most are
    on the devices; what came before lies on the host.

    Where there are several processes, each has its own part of all batches, and all of them must
    send the same shapes in the same order.

    run: compiled, (variables, images) -> scores, both split over the devices of `mesh`.
    """

    def __init__(self, run: Run, variables: Any, mesh: Mesh, pieces_per_device: int):
        self.devices = tuple(mesh.local_mesh.devices.flat)
        self.batch_size = len(self.devices) * pieces_per_device
        self._whole_batch = mesh.size * pieces_per_device  # of all processes
        self._run, self._variables, self._mesh = run, variables, mesh
        self._waiting: dict[tuple[int, ...], list] = defaultdict(list)
        self._running: deque = deque()
        self._scores_hw: dict[tuple[int, int], tuple[int, int]] = {}

    def send(self, pixels: Float[np.ndarray, "h w 3"]) -> Crop:
        """Puts a piece into the next batch of its shape."""
        piece = Crop(pixels.shape)
        self._waiting[piece.shape].append((piece, pixels))
        if len(self._waiting[piece.shape]) == self.batch_size:
            self._start(piece.shape)
        return piece

    def scores(self, piece: Crop) -> Float[np.ndarray, "p q k"]:
        """The scores of a piece, at the stride of the head; runs its batch if it has to."""
        if piece.waiting:
            self._start(piece.shape)
        while piece.scores is None:
            self._fetch()
        return piece.scores

    def scores_hw(self, hw: tuple[int, int]) -> tuple[int, int]:
        """The size of the scores of a piece."""
        if hw not in self._scores_hw:
            sharding = NamedSharding(self._mesh, BATCH_SPEC)
            shape = (self._whole_batch, *hw, 3)
            images = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
            with jax.set_mesh(self._mesh):
                scores = jax.eval_shape(self._run, self._variables, images)
            self._scores_hw[hw] = scores.shape[1:3]
        return self._scores_hw[hw]

    def _start(self, shape):
        pieces, pixels = zip(*self._waiting.pop(shape), strict=True)
        images = np.zeros((self.batch_size, *shape), np.float32)
        images[: len(pixels)] = pixels
        with jax.set_mesh(self._mesh):
            images = put_batch({"image": images}, self._mesh)["image"]
            self._running.append((pieces, self._run(self._variables, images)))
        for piece in pieces:
            piece.waiting = False
        if len(self._running) > 2:
            self._fetch()

    def _fetch(self):
        pieces, scores = self._running.popleft()
        shards = sorted(scores.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        # Copies: where the host is the device, what is not copied stays an array of the device.
        rows = [row for shard in shards for row in np.array(shard.data)]
        for piece, row in zip(pieces, rows, strict=False):  # the rest is filling
            piece.scores = row
