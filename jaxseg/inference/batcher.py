"""Runs a model on image crops, in padded batches of few shapes, over all devices.

What comes back of a crop is its logits or, where the crop is all that is seen of an image, the
classes of the image (`class_tiles`).
"""

import functools
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, UInt8

from jaxseg.distributed.sharding import BATCH_SPEC, put_batch
from jaxseg.inference.class_tiles import classes_of_tiles, plan_tiles
from jaxseg.inference.sliding_window import AxisPlan
from jaxseg.models.segmentation_model import SegmentationModel, apply_model
from jaxseg.ops.padding import Sizes

Hw = tuple[int, int]
Run = Callable[[Any, Float[Array, "b h w 3"], Sizes | None], Float[Array, "b p q k"]]
Plans = tuple[AxisPlan, AxisPlan]  # of the rows and of the columns of an image


class Program(NamedTuple):
    """Selects one of the executables of a model.

    Attributes:
      hw: height and width of the images in a batch.
      padded: whether they may be smaller, padded to `hw`.
    """

    hw: Hw
    padded: bool


@functools.cache
def compile_forward(model: SegmentationModel, outputs: int | None, mesh: Mesh) -> Run:
    """Returns the jitted function (variables, images, sizes) -> logits, compiled once per shape.

    The logits are float32 at the stride of the head, sharded over the batch. `sizes` are those of
    the images without padding, or None if they have none (`segmentation_model.apply_model`).

    Args:
      model: the model to run.
      outputs: number of leading outputs of the head to keep, or None for all. Some published heads
        have more outputs than their dataset has classes.
      mesh: the devices to shard the logits over.
    """

    def run(variables, images, sizes=None):
        output, _ = apply_model(model, variables, images, image_sizes=sizes)
        return output.logits[..., :outputs].astype(jnp.float32)

    return jax.jit(run, out_shardings=NamedSharding(mesh, BATCH_SPEC))


class Crop:
    """Represents a part of an image that was sent to a `Batcher`.

    Attributes:
      hw: its height and width.
      program: the program that runs it.
      plans: the plans of the image, if its classes are wanted and not the logits of the crop.
      waiting: True until its batch is started.
      output: the logits [p, q, k] or the classes of tiles [r, c, y, x] on the host, or None until
        its batch is done.
    """

    def __init__(self, hw: Hw, program: Program, plans: Plans | None):
        self.hw, self.program, self.plans = hw, program, plans
        self.waiting, self.output = True, None

    @property
    def group(self) -> tuple[Program, bool]:
        """Crops of the same group can share a batch."""
        return self.program, self.plans is not None


class Batcher:
    """Collects crops by program and runs a batch of them when it is full.

    A batch has the same number of crops on every device. A batch that must run before it is full is
    filled with zeros, so the model has one executable per program. At most two batches stay on the
    devices. The outputs of earlier ones are on the host.

    With several processes, each process fills its own shard of every batch. All processes must send
    the same shapes in the same order.

    Args:
      run: a compiled function (variables, images, sizes) -> logits, with images and logits sharded
        over the devices of `mesh`.
      variables: the variables of the model, on the devices of `mesh`.
      mesh: the devices of all processes.
      crops_per_device: number of crops per device in a batch.
      program: gives the program for a crop of some height and width. Padded sides are multiples of
        the stride of the logits.

    Attributes:
      devices: the devices of this process.
      batch_size: number of crops of this process in a batch.
      program: the function that is given.
      programs: the programs that have run.
    """

    def __init__(
        self,
        run: Run,
        variables: Any,
        mesh: Mesh,
        crops_per_device: int,
        program: Callable[[Hw], Program] = lambda hw: Program(hw, padded=False),
    ):
        self.devices = tuple(mesh.local_mesh.devices.flat)
        self.batch_size = len(self.devices) * crops_per_device
        self._whole_batch = mesh.size * crops_per_device  # of all processes
        self._run, self._variables, self._mesh = run, variables, mesh
        self.programs: set[Program] = set()
        self.program = program
        self._waiting: dict[tuple[Program, bool], list] = defaultdict(list)
        self._running: deque = deque()
        self._logits_hw: dict[Hw, Hw] = {}  # of the images of a program

    def send(self, pixels: Float[np.ndarray, "h w 3"], plans: Plans | None = None) -> Crop:
        """Puts a crop into the next batch of its shape, and runs that batch if it is full.

        Args:
          pixels: the crop, as the network takes it.
          plans: the plans of an image that the crop shows whole, if its classes are wanted and not
            the logits of the crop.
        """
        hw = pixels.shape[:2]
        crop = Crop(hw, self.program(hw), plans)
        waiting = self._waiting[crop.group]
        waiting.append((crop, pixels))
        if len(waiting) == self.batch_size:
            self._start(crop.group)
        return crop

    def logits(self, crop: Crop) -> Float[np.ndarray, "p q k"]:
        """Returns the logits of a crop, at the stride of the head.

        If the batch of the crop is not running yet, it is started before it is full.
        """
        height, width = self.logits_hw(crop.hw)
        return self._output(crop)[:height, :width]

    def classes(self, crop: Crop) -> UInt8[np.ndarray, "r c y x"]:
        """Returns the classes of the tiles of the image that a crop shows (`class_tiles`).

        If the batch of the crop is not running yet, it is started before it is full.
        """
        return self._output(crop)

    def logits_hw(self, hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the height and width of the logits of a crop of size `hw`."""
        padded_hw = self.program(hw).hw
        if padded_hw not in self._logits_hw:
            sharding = NamedSharding(self._mesh, BATCH_SPEC)
            shape = (self._whole_batch, *padded_hw, 3)
            images = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
            with jax.set_mesh(self._mesh):
                logits = jax.eval_shape(self._run, self._variables, images, None)
            self._logits_hw[padded_hw] = logits.shape[1:3]
        sides = zip(hw, self._logits_hw[padded_hw], padded_hw, strict=True)
        height, width = (-(-side * logits // padded) for side, logits, padded in sides)
        return height, width

    def _output(self, crop):
        if crop.waiting:
            self._start(crop.group)
        while crop.output is None:
            self._fetch()
        return crop.output

    def _start(self, group):
        program, of_classes = group
        self.programs.add(program)
        crops, pixels = zip(*self._waiting.pop(group), strict=True)
        images = np.zeros((self.batch_size, *program.hw, 3), np.float32)
        sizes = np.full((self.batch_size, 2), program.hw, np.int32)
        for image, size, crop, crop_pixels in zip(images, sizes, crops, pixels, strict=False):
            size[:] = crop.hw
            image[: crop.hw[0], : crop.hw[1]] = crop_pixels
        batch = {"images": images} | ({"sizes": sizes} if program.padded else {})
        with jax.set_mesh(self._mesh):
            batch = put_batch(batch, self._mesh)
            output = self._run(self._variables, batch["images"], batch.get("sizes"))
            if of_classes:
                output = classes_of_tiles(output, **self._tiles(crops, output.shape[1:3]))
            self._running.append((crops, output))
        for crop in crops:
            crop.waiting = False
        if len(self._running) > 2:
            self._fetch()

    def _tiles(self, crops, logits_hw):
        """Returns the tiles of the images of a batch, on the devices of their crops."""
        missing = self.batch_size - len(crops)
        plans = [crop.plans for crop in crops] + [crops[-1].plans] * missing
        rows, columns = map(plan_tiles, zip(*plans, strict=True), logits_hw)
        tiles = {"row_starts": rows.starts, "row_matrices": rows.matrices}
        tiles |= {"column_starts": columns.starts, "column_matrices": columns.matrices}
        return put_batch(tiles, self._mesh)

    def _fetch(self):
        crops, output = self._running.popleft()
        shards = sorted(output.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        # np.array copies. If the device is the host, a view would keep the device's array alive.
        rows = [row for shard in shards for row in np.array(shard.data)]
        for crop, row in zip(crops, rows, strict=False):  # the remaining rows fill the batch
            crop.output = row
