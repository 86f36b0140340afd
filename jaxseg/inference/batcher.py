"""Runs a model on crops of images, in batches of a few shapes, over all devices."""

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
from jaxseg.models.segmentation_model import SegmentationModel, apply_model

Run = Callable[[Any, Float[Array, "b h w 3"]], Float[Array, "b p q k"]]


@functools.cache
def compile_forward(model: SegmentationModel, outputs: int | None, mesh: Mesh) -> Run:
    """(variables, images) -> logits at the stride of the head, compiled once per shape.

    Of the first `outputs` outputs of the head, or of all: some published heads have more outputs
    than their dataset has classes.
    """

    def run(variables, images):
        logits = apply_model(model, variables, images)[0].logits[..., :outputs]
        return logits.astype(jnp.float32)

    return jax.jit(run, out_shardings=NamedSharding(mesh, BATCH_SPEC))


class Crop:
    """A part of an image that waits for its logits.

    Attributes:
      waiting: True until it is part of a batch.
      logits: once that batch is through.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.waiting, self.logits = shape, True, None


class Batcher:
    """Collects crops by shape and runs them when a batch of a shape is full.

    A batch has as many crops on every device, and is filled up with zeros where it has to run
    before it is full: so there is one compiled program per shape of crops. Two batches at most are
    on the devices; what came before lies on the host.

    Where there are several processes, each has its own part of all batches, and all of them must
    send the same shapes in the same order.

    run: compiled, (variables, images) -> logits, both split over the devices of `mesh`.
    """

    def __init__(self, run: Run, variables: Any, mesh: Mesh, crops_per_device: int):
        self.devices = tuple(mesh.local_mesh.devices.flat)
        self.batch_size = len(self.devices) * crops_per_device
        self._whole_batch = mesh.size * crops_per_device  # of all processes
        self._run, self._variables, self._mesh = run, variables, mesh
        self._waiting: dict[tuple[int, ...], list] = defaultdict(list)
        self._running: deque = deque()
        self._logits_hw: dict[tuple[int, int], tuple[int, int]] = {}

    def send(self, pixels: Float[np.ndarray, "h w 3"]) -> Crop:
        """Puts a crop into the next batch of its shape."""
        crop = Crop(pixels.shape)
        self._waiting[crop.shape].append((crop, pixels))
        if len(self._waiting[crop.shape]) == self.batch_size:
            self._start(crop.shape)
        return crop

    def logits(self, crop: Crop) -> Float[np.ndarray, "p q k"]:
        """The logits of a crop, at the stride of the head; runs its batch if it has to."""
        if crop.waiting:
            self._start(crop.shape)
        while crop.logits is None:
            self._fetch()
        return crop.logits

    def logits_hw(self, hw: tuple[int, int]) -> tuple[int, int]:
        """The size of the logits of a crop."""
        if hw not in self._logits_hw:
            sharding = NamedSharding(self._mesh, BATCH_SPEC)
            shape = (self._whole_batch, *hw, 3)
            images = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
            with jax.set_mesh(self._mesh):
                logits = jax.eval_shape(self._run, self._variables, images)
            self._logits_hw[hw] = logits.shape[1:3]
        return self._logits_hw[hw]

    def _start(self, shape):
        crops, pixels = zip(*self._waiting.pop(shape), strict=True)
        images = np.zeros((self.batch_size, *shape), np.float32)
        images[: len(pixels)] = pixels
        with jax.set_mesh(self._mesh):
            images = put_batch({"image": images}, self._mesh)["image"]
            self._running.append((crops, self._run(self._variables, images)))
        for crop in crops:
            crop.waiting = False
        if len(self._running) > 2:
            self._fetch()

    def _fetch(self):
        crops, logits = self._running.popleft()
        shards = sorted(logits.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        # Copies: where the host is the device, what is not copied stays an array of the device.
        rows = [row for shard in shards for row in np.array(shard.data)]
        for crop, row in zip(crops, rows, strict=False):  # the rest is filling
            crop.logits = row
