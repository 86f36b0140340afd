"""Predicts class maps and probabilities of images by the protocol of the reference.

The network sees each image in several views (`jaxseg.data.views`). A view is one crop or several
windows (`windowed_view`), which run in batches of few shapes (`batcher`). The result is computed
from top to bottom, one band of rows at a time. Of each view, only the logits of the windows that
the next band needs are held, at the stride of the head. This module does not depend on datasets.
"""

import functools
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from jaxseg.data import views
from jaxseg.inference import tiles
from jaxseg.inference.batcher import Batcher, compile_forward
from jaxseg.inference.padded_shapes import program_chooser
from jaxseg.inference.sliding_window import parse_sliding_window
from jaxseg.inference.windowed_view import WindowedView
from jaxseg.models.segmentation_model import SegmentationModel, Variables


class Predictor:
    """Predicts class maps and probabilities of images by the protocol of `config.eval`.

    Args:
      batcher: runs the model. As many images are in flight as fit into one of its batches, so that
        images without windows fill a batch too.
      config: the resolved config.

    Raises:
      ConfigError: if `config.eval` describes impossible views or windows.
    """

    def __init__(self, batcher: Batcher, config: ConfigDict):
        self._batcher, self._config = batcher, config
        self._slide, self._rule = parse_sliding_window(config.eval), views.evaluation_rule(config)

    def class_maps(
        self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[UInt8[np.ndarray, "_ _"]]:
        """Yields the class of every pixel, for each BGR image in turn."""
        return self._assembled(images, tiles.classes)

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w k"]:
        """Returns the class probabilities of every pixel of a BGR image, as float32."""
        (found,) = self._assembled([image], tiles.probabilities)
        return found

    def warm_up(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Compiles the programs for images of these sizes, by running black images.

        Args:
          sizes: (height, width) of every image.

        Returns:
          The number of programs of the model so far.
        """
        for hw in sizes:
            black = np.zeros((*hw, 3), np.uint8)
            needed = {self._batcher.program(view.crop_hw) for view in self._windowed(black)}
            if needed - self._batcher.programs:
                for _ in self.class_maps([black]):
                    pass
        return len(self._batcher.programs)

    def _assembled(self, images, tiles_of):
        for (height, width), start, stop, bands in self._ahead(self._bands(images)):
            results = [band.result(self._batcher) for band in bands]
            for columns, tile in tiles_of(results, width, self._batcher.devices):
                if (start, columns.start) == (0, 0):
                    out = np.empty((height, width, *tile.shape[2:]), tile.dtype)
                out[start:stop, columns] = tile
            if stop == height:
                yield out

    def _bands(self, images):
        """Yields (image number, (image size, start, stop, bands of its views)), top to bottom."""
        for number, image in enumerate(images):
            hw = image.shape[:2]
            windowed = self._windowed(image)
            for start in range(0, hw[0], tiles.TILE):
                stop = min(start + tiles.TILE, hw[0])
                yield number, (hw, start, stop, [view.band(start, stop) for view in windowed])

    def _windowed(self, image):
        hw, config = image.shape[:2], self._config
        resized = functools.cache(functools.partial(views.resize, image))  # shared by mirror images
        found = []
        for view in views.plan_views(hw, config):
            unpadded_hw = view.hw if self._rule.cut_padding else view.padded_hw

            def cut(top, left, hw, view=view):
                return views.cut_window(resized(view.sizes), view, top, left, hw, config)

            found.append(
                WindowedView(
                    self._batcher,
                    cut,
                    view.padded_hw,
                    unpadded_hw,
                    hw,
                    self._slide,
                    view.mirrored,
                    view.weight,
                )
            )
        return found

    def _ahead(self, bands):
        """Delays each band until its windows run in full batches, if there are enough images."""
        queue = deque()
        for number, band in bands:
            queue.append((number, band))
            while queue and (
                _all_running(queue[0][1]) or number - queue[0][0] >= self._batcher.batch_size
            ):
                yield queue.popleft()[1]
        for _, band in queue:
            yield band


def _all_running(band):
    *_, views_of_band = band
    return not any(
        piece.waiting for view in views_of_band for pieces, _ in view.windows for piece in pieces
    )


def make_predictor(
    model: SegmentationModel,
    variables: Variables,
    config: ConfigDict,
    mesh: Mesh,
    outputs: int | None = None,
) -> Predictor:
    """Creates a predictor that runs a model on all devices of a mesh.

    Args:
      model: the model to run.
      variables: its variables on the devices of `mesh`, with any sharding.
      config: the resolved config, whose `eval` part describes the protocol.
      mesh: the devices to use.
      outputs: number of leading outputs of the head to use, or None for all.

    Raises:
      ConfigError: if `config.eval` describes impossible views or windows.
    """
    run, program = compile_forward(model, outputs, mesh), program_chooser(model, config)
    batcher = Batcher(run, variables, mesh, config.eval.images_per_device, program)
    return Predictor(batcher, config)
