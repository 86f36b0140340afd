"""Runs a model on image crops, in batches of few shapes, over all devices."""

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
    """Returns the jitted function (variables, images) -> logits, compiled once per shape.

    The logits are float32 at the stride of the head, sharded over the batch.

    Args:
      model: the model to run.
      outputs: number of leading outputs of the head to keep, or None for all. Some published heads
        have more outputs than their dataset has classes.
      mesh: the devices to shard the logits over.
    """

    def run(variables, images):
        logits = apply_model(model, variables, images)[0].logits[..., :outputs]
        return logits.astype(jnp.float32)

    return jax.jit(run, out_shardings=NamedSharding(mesh, BATCH_SPEC))


class Crop:
    """Represents a part of an image that was sent to a `Batcher`.

    Attributes:
      shape: the shape of its pixels.
      waiting: True until its batch is started.
      logits: the logits [p, q, k] on the host, or None until its batch is done.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.waiting, self.logits = shape, True, None


class Batcher:
    """Collects crops by shape and runs a batch of them when it is full.

    A batch has the same number of crops on every device. A batch that must run before it is full is
    padded with zeros, so there is one executable per crop shape. At most two batches stay on the
    devices. The logits of earlier ones are on the host.

    With several processes, each process fills its own shard of every batch. All processes must send
    the same shapes in the same order.

    Args:
      run: a compiled function (variables, images) -> logits, with images and logits sharded over
        the devices of `mesh`.
      variables: the variables of the model, on the devices of `mesh`.
      mesh: the devices of all processes.
      crops_per_device: number of crops per device in a batch.

    Attributes:
      devices: the devices of this process.
      batch_size: number of crops of this process in a batch.
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
        """Puts a crop into the next batch of its shape, and runs that batch if it is full."""
        crop = Crop(pixels.shape)
        self._waiting[crop.shape].append((crop, pixels))
        if len(self._waiting[crop.shape]) == self.batch_size:
            self._start(crop.shape)
        return crop

    def logits(self, crop: Crop) -> Float[np.ndarray, "p q k"]:
        """Returns the logits of a crop, at the stride of the head.

        If the batch of the crop is not running yet, it is started before it is full.
        """
        if crop.waiting:
            self._start(crop.shape)
        while crop.logits is None:
            self._fetch()
        return crop.logits

    def logits_hw(self, hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the height and width of the logits of a crop of size `hw`."""
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
        # np.array copies. If the device is the host, a view would keep the device's array alive.
        rows = [row for shard in shards for row in np.array(shard.data)]
        for crop, row in zip(crops, rows, strict=False):  # the remaining rows are padding
            crop.logits = row
