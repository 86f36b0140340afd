"""Predicts class maps and probabilities of images by the protocol of the reference.

The network sees each image in several views (`jaxseg.data.views`). A view is one crop or several
windows (`windowed_view`), which run in batches of few shapes (`batcher`). The result is computed
from top to bottom, one band of rows at a time. Of each view, only the logits of the windows that
the next band needs are held, at the stride of the head. Several models are averaged like views:
each has its own views, which count as much in sum as those of another model. If one window of one
view shows all of an image, its classes are computed where the logits are, and no logits leave the
device (`class_tiles`). This module does not depend on datasets.
"""

import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from jaxseg.data import views
from jaxseg.inference import tiles
from jaxseg.inference.batcher import Batcher, compile_forward
from jaxseg.inference.padded_shapes import program_chooser
from jaxseg.inference.sliding_window import SlidingWindow, parse_sliding_window, slide_over
from jaxseg.inference.windowed_view import PendingBand, PendingClasses, WindowedView
from jaxseg.models.segmentation_model import SegmentationModel, Variables


class _Model(NamedTuple):
    """A model and how it sees an image."""

    batcher: Batcher
    config: ConfigDict
    slide: SlidingWindow | None
    rule: Any


class _Bands(NamedTuple):
    """The rows of an image from `start` to `stop`, in all views, each with its batcher."""

    hw: tuple[int, int]
    start: int
    stop: int
    views: list[tuple[Batcher, PendingBand]]

    @property
    def waiting(self):
        crops = (crop for _, view in self.views for crops, _ in view.windows for crop in crops)
        return any(crop.waiting for crop in crops)


class Predictor:
    """Predicts class maps and probabilities of images by the protocol of `config.eval`.

    Args:
      batcher: runs the model. As many images are in flight as fit into one of its batches, so that
        images without windows fill a batch too.
      config: the resolved config.
      others: predictors of further models. The class probabilities are the mean over all models,
        each of which sees an image by its own protocol.

    Raises:
      ConfigError: if `config.eval` describes impossible views or windows.
    """

    def __init__(self, batcher: Batcher, config: ConfigDict, others: Sequence["Predictor"] = ()):
        slide, rule = parse_sliding_window(config.eval), views.evaluation_rule(config)
        own = _Model(batcher, config, slide, rule)
        self._models = [own, *(model for other in others for model in other._models)]
        self._devices = batcher.devices
        self._warm = set()  # what `warm_up` has run
        self._batch_size = max(model.batcher.batch_size for model in self._models)

    def class_maps(
        self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[UInt8[np.ndarray, "_ _"]]:
        """Yields the class of every pixel, for each BGR image in turn."""
        return self._assembled(self._pieces(images, of_classes=True), tiles.classes)

    def probability_maps(
        self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[Float[np.ndarray, "_ _ _"]]:
        """Yields the class probabilities of every pixel, float32, for each BGR image in turn."""
        return self._assembled(self._pieces(images, of_classes=False), tiles.probabilities)

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w k"]:
        """Returns the class probabilities of every pixel of a BGR image, as float32."""
        (found,) = self.probability_maps([image])
        return found

    def warm_up(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Compiles the programs for images of these sizes, by running black images.

        Args:
          sizes: (height, width) of every image.

        Returns:
          The number of programs of the models so far.
        """
        for hw in sizes:
            black = np.zeros((*hw, 3), np.uint8)
            windowed = self._windowed(black)
            is_one_window = _is_one_window(windowed)
            shapes = windowed[0][1].tile_shapes() if is_one_window else ()
            needed = {
                (batcher, batcher.program(view.crop_hw), *shapes) for batcher, view in windowed
            }
            if not needed <= self._warm:
                self._warm |= needed
                list(self.class_maps([black]))
                if is_one_window:  # its probabilities take other executables than its classes
                    list(self.probability_maps([black]))
        return sum(len(model.batcher.programs) for model in self._models)

    def _pieces(self, images, of_classes):
        """Yields (image number, all or a part of the image while its windows run), in order."""
        for number, image in enumerate(images):
            windowed = self._windowed(image)
            if of_classes and _is_one_window(windowed):
                yield number, windowed[0][1].classes()
                continue
            hw = image.shape[:2]
            for start in range(0, hw[0], tiles.TILE):
                stop = min(start + tiles.TILE, hw[0])
                views_of_band = [(batcher, view.band(start, stop)) for batcher, view in windowed]
                yield number, _Bands(hw, start, stop, views_of_band)

    def _assembled(self, pieces, tiles_of):
        for piece in self._ahead(pieces):
            if isinstance(piece, PendingClasses):
                yield piece.result()
                continue
            (height, width), start, stop, views_of_band = piece
            results = [band.result(batcher) for batcher, band in views_of_band]
            for columns, tile in tiles_of(results, width, self._devices):
                if (start, columns.start) == (0, 0):
                    out = np.empty((height, width, *tile.shape[2:]), tile.dtype)
                out[start:stop, columns] = tile
            if stop == height:
                yield out

    def _windowed(self, image):
        """Returns the views of an image, each with the batcher of its model."""
        hw = image.shape[:2]
        resized = functools.cache(functools.partial(views.resize, image))  # shared by mirror images
        planned = [views.plan_views(hw, model.config) for model in self._models]
        totals = [sum(view.weight for view in of_model) for of_model in planned]
        whole = math.lcm(*totals)  # what the views of each model weigh together
        found = []
        for model, of_model, total in zip(self._models, planned, totals, strict=True):
            for view in of_model:

                def cut(top, left, hw, view=view, config=model.config):
                    shown = resized(view.sizes, view.smooth)
                    return views.cut_window(shown, view, top, left, hw, config)

                windowed = WindowedView(
                    model.batcher,
                    cut,
                    view.padded_hw,
                    view.hw if model.rule.cut_padding else view.padded_hw,
                    hw,
                    slide_over(view.padded_hw, model.slide, squares=view.smooth),
                    view.mirrored,
                    view.weight * whole // total,
                )
                found.append((model.batcher, windowed))
        return found

    def _ahead(self, pieces):
        """Delays each piece until its windows run in full batches, if there are enough images."""
        queue = deque()
        for number, piece in pieces:
            queue.append((number, piece))
            while queue and (not queue[0][1].waiting or number - queue[0][0] >= self._batch_size):
                yield queue.popleft()[1]
        for _, piece in queue:
            yield piece


def _is_one_window(windowed):
    return len(windowed) == 1 and windowed[0][1].is_whole


def make_predictor(
    model: SegmentationModel,
    variables: Variables,
    config: ConfigDict,
    mesh: Mesh,
    outputs: int | None = None,
    others: Sequence[Predictor] = (),
) -> Predictor:
    """Creates a predictor that runs a model on all devices of a mesh.

    Args:
      model: the model to run.
      variables: its variables on the devices of `mesh`, with any sharding.
      config: the resolved config, whose `eval` part describes the protocol.
      mesh: the devices to use.
      outputs: number of leading outputs of the head to use, or None for all.
      others: predictors of models to average with this one (`Predictor`).

    Raises:
      ConfigError: if `config.eval` describes impossible views or windows.
    """
    run, program = compile_forward(model, outputs, mesh), program_chooser(model, config)
    batcher = Batcher(run, variables, mesh, config.eval.images_per_device, program)
    return Predictor(batcher, config, others)
