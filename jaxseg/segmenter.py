"""A trained model that segments images: the part of jaxseg that most users hold."""

import copy
import functools
import itertools
import os
import pathlib
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxseg import pretrained
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device, load_saved_config
from jaxseg.data import picture_files, transforms
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.decoding.any_picture import Picture, open_picture
from jaxseg.data.source import evaluated_on
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.inference.portable import Segment, portable_function
from jaxseg.inference.predictor import make_predictor
from jaxseg.inference.segments import Segments, instance_segments, panoptic_segments
from jaxseg.models import kernels
from jaxseg.models.heads.mask2former_head import Mask2FormerHead
from jaxseg.models.segmentation_model import SegmentationModel, Variables, apply_model, build_model
from jaxseg.segmentation import Segmentation
from jaxseg.workdir import AnyPath
from jaxseg.zoo import hub


class Segmenter:
    """A trained model, ready to segment images; it needs no dataset and no config file.

    One thread at a time may use it.

    Attributes:
      config: the config that the model was trained with.
      dataset: the dataset that it was evaluated on, with class names and colors.
      name: what it was loaded from.
    """

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        model: SegmentationModel,
        variables: Variables,
        devices: Sequence[jax.Device] | None = None,
        name: str = "a model",
    ):
        self.config, self.dataset, self.name = config, dataset, name
        self._model, self._variables = model, variables
        self._devices = devices or jax.local_devices()[:1]
        self._others: Sequence[Segmenter] = ()
        self._checkpoint: AnyPath | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike | Sequence[str | os.PathLike],
        config: str | ConfigDict | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> "Segmenter":
        """Loads a published model, a PyTorch file or a run, or several to be averaged.

        A published model is downloaded and converted once, into the cache; so is a PyTorch file.
        From then on, no network is needed.

        Args:
          source: the name of a published model (`jaxseg.list_models`), with or without "zoo:"; a
            PyTorch file; a run's directory or one of its checkpoints; a folder of
            `save_pretrained`; or hf://OWNER/REPOSITORY for a model on the Hugging Face Hub, where
            hf://OWNER/REPOSITORY/FILE is a PyTorch file. A list of these gives the mean of their
            class probabilities (`mean_of`).
          config: the config of a PyTorch file, as FILE:VARIANT or loaded. By default that of the
            published model whose file has the same name.
          devices: the devices to run on, by default the first of this process. Several images run
            on several devices at the same time.

        Raises:
          CheckpointError: if there is no checkpoint, or it cannot be downloaded or converted.
          ConfigError: for an unknown name, with the nearest ones; if the config asks for sizes
            that the model cannot take; or if models to be averaged have different classes.
          OutputError: if the cache cannot be written.
        """
        if not isinstance(source, (str, os.PathLike)):
            return cls.mean_of([cls.from_pretrained(one, config, devices) for one in source])
        segmenter = cls.from_checkpoint(pretrained.find(source, config), devices)
        segmenter.name = os.fspath(source)
        return segmenter

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike, devices: Sequence[jax.Device] | None = None
    ) -> "Segmenter":
        """Loads a run's best checkpoint, or the checkpoint that `path` points to.

        Args:
          path: a run's directory or one of its checkpoints.
          devices: the devices to run on, by default the first of this process.

        Raises:
          CheckpointError: if there is none.
          ConfigError: if its config asks for sizes that the model cannot take.
        """
        checkpoint = find_checkpoint(path)
        config = ConfigDict(load_saved_config(checkpoint))
        dataset = evaluated_on(config.data).dataset
        kernels.check_kernels(config.model, jax.local_devices()[0].platform)
        model = build_model(config.model)
        variables = load_on_device(checkpoint, model, devices[0] if devices else None)
        check_image_sizes(config)
        segmenter = cls(config, dataset, model, variables, devices, os.fspath(path))
        segmenter._checkpoint = checkpoint
        return segmenter

    @classmethod
    def mean_of(cls, segmenters: Sequence["Segmenter"]) -> "Segmenter":
        """Returns a segmenter whose class probabilities are the mean of those of several.

        Each model sees an image in the views and windows of its own evaluation. Config, colors and
        devices are those of the first.

        Raises:
          ConfigError: if their classes differ, or if there are none.
        """
        if not segmenters:
            raise ConfigError("no model is named; give one or more to be averaged")
        first, *others = segmenters
        if not others:
            return first
        for other in others:
            pairs = itertools.zip_longest(first.dataset.classes, other.dataset.classes)
            for number, (one, another) in enumerate(pairs):
                if one != another:
                    raise ConfigError(
                        f"{first.name} and {other.name} cannot be averaged, because their classes"
                        f" differ: class {number} is {one!r} in the first and {another!r} in the"
                        " second; name models of the same dataset"
                    )
        parts = first.config, first.dataset, first._model, first._variables, first._devices
        mean = cls(*parts, " + ".join(segmenter.name for segmenter in segmenters))
        mean._others = [*first._others, *others]
        return mean

    def on(self, devices: Sequence[jax.Device]) -> "Segmenter":
        """Returns the same model on other devices of this process, for a thread of its own.

        Args:
          devices: as in `from_checkpoint`.
        """
        moved = copy.copy(self)
        moved.__dict__.pop("_predictor", None)
        moved._variables = jax.device_put(self._variables, devices[0])
        moved._devices = devices
        moved._others = [other.on(devices) for other in self._others]
        return moved

    def __call__(self, images: Picture | Sequence[Picture]) -> Segmentation | list[Segmentation]:
        """Segments an image, or several.

        Args:
          images: an image file, an image of Pillow or an RGB array [h, w, 3] of uint8; or a list of
            these, or a folder of image files.

        Returns:
          The segmentation of the image, or a list of those of all images. `stream` does not hold
          them all at once.

        Raises:
          DataError: if a file cannot be read, or a folder has no images.
          ValueError: for an array that is not RGB uint8.
        """
        if isinstance(images, (str, os.PathLike)) and pathlib.Path(images).is_dir():
            folder = pathlib.Path(images)
            names = picture_files.find_some(folder).names
            return list(self.stream(folder / name for name in names))
        if isinstance(images, Sequence) and not isinstance(images, str):
            return list(self.stream(images))
        (found,) = self.stream([images])
        return found

    def stream(
        self, images: Iterable[Picture], *, probabilities: bool = False
    ) -> Iterator[Segmentation]:
        """Yields the segmentation of each image in turn, as soon as it is there.

        As many images are read ahead as fit into one batch of the devices.

        Args:
          images: as in a call.
          probabilities: keep the class probabilities too, for `Segmentation.probabilities`. They
            take 4 bytes per pixel and class.

        Raises:
          DataError: if a file cannot be read.
          ValueError: for an array that is not RGB uint8.
        """
        waiting = deque()

        def opened():
            for image in images:
                pixels = open_picture(image)
                path = pathlib.Path(image) if isinstance(image, (str, os.PathLike)) else None
                waiting.append((pixels, path))
                yield _bgr(pixels)

        if not probabilities:
            for classes in self._predictor.class_maps(opened()):
                pixels, path = waiting.popleft()
                yield self._segmentation(pixels, classes, path, None)
            return
        for found in self._predictor.probability_maps(opened()):
            pixels, path = waiting.popleft()
            classes = np.argmax(found, axis=-1).astype(np.uint8)
            yield self._segmentation(pixels, classes, path, found)

    def probabilities(self, image: Picture) -> Float[np.ndarray, "h w k"]:
        """Returns the class probabilities of an image, at its own size.

        The image is seen in the views and windows of the model's evaluation.

        Args:
          image: as in a call.

        Raises:
          DataError: if a file cannot be read.
          ValueError: for an array that is not RGB uint8.
        """
        return self._predictor.probabilities(_bgr(open_picture(image)))

    def warm_up(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Compiles the programs for images of these sizes, so that the first ones take no longer.

        Args:
          sizes: (height, width) of every image.

        Returns:
          The number of programs of the model so far. Models of convolutions run images of many
          sizes in a few programs; the others need one for each size of the network's input.
        """
        return self._predictor.warm_up(sizes)

    def segments(self, image: Picture, *, overlapping: bool = False) -> Segments:
        """Returns the segments that Mask2Former finds in an image.

        The model sees the image as a whole, whatever `config.eval.mode` says: in windows, each
        window would have queries of its own.

        Args:
          image: as in a call.
          overlapping: return a segment for every query (`segments.instance_segments`), not those
            of high confidence that do not overlap (`segments.panoptic_segments`).

        Raises:
          ConfigError: for a model with another head, or for the mean of several models.
          DataError: if a file cannot be read.
          ValueError: for an array that is not RGB uint8.
        """
        if self._others:
            raise ConfigError(f"segments come from one model, and this is the mean of {self.name}")
        if not self.has_segments:
            raise ConfigError(
                "segments come from the queries of a mask2former head, and this model's is"
                f" config.model.decode_head.kind={self.config.model.decode_head.kind}"
            )
        pixels = open_picture(image)
        prepared = transforms.test_transform(_bgr(pixels), self.config.data)
        predicted = _last_prediction(self._model, self._variables, prepared)
        read = instance_segments if overlapping else panoptic_segments
        return read(*predicted, prepared.shape[:2], pixels.shape[:2], self._num_classes)

    def portable(self, hw: tuple[int, int], dtype: str = "float32") -> Segment:
        """Returns the whole prediction as one function of JAX, for export.

        The function takes RGB images, uint8 [b, h, w, 3] of one size, and returns the classes of
        their pixels, uint8 [b, h, w], and the probabilities, float32 [b, h, w, k].

        Args:
          hw: height and width of the images.
          dtype: the type of the computation, "float32" or "bfloat16".

        Raises:
          ConfigError: for the mean of several models.
        """
        if self._others:
            raise ConfigError(f"one model can be exported, and this is the mean of {self.name}")
        model = build_model(self.config.model.to_dict() | {"dtype": dtype}, portable=True)
        return portable_function(model, self._variables, self.config, hw, self._num_classes)

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        metrics: Mapping[str, Any] | None = None,
        name: str | None = None,
        license: str | None = None,
    ) -> pathlib.Path:
        """Writes the model into a folder: weights, config and a model card.

        The weights are `model.safetensors`, with the names and layouts of the original PyTorch
        code; the config is `config.json`; the card is `README.md`. `from_pretrained` takes the
        folder. It needs the extra `hub`.

        Args:
          folder: the folder; made if it is missing.
          metrics: the content of `metrics.json` of an evaluation, for the card. By default that in
            the directory of the run, if it is of this checkpoint.
          name: what the card gives to `from_pretrained`; by default the folder.
          license: the license of the weights, as the Hugging Face Hub names it.

        Returns:
          The folder.

        Raises:
          ConfigError: for the mean of several models, metrics of another checkpoint, the folder of
            a run, or without the package huggingface_hub.
          OutputError: if a file cannot be written.
        """
        if self._others:
            raise ConfigError(f"one model can be saved, and this is the mean of {self.name}")
        return pretrained.save(
            folder,
            self._variables,
            self.config,
            self.dataset,
            checkpoint=self._checkpoint,
            metrics=metrics,
            name=name or os.fspath(folder),
            license=license,
        )

    def push_to_hub(self, repository: str, *, private: bool = False, **options) -> str:
        """Publishes what `save_pretrained` writes on the Hugging Face Hub.

        Args:
          repository: OWNER/REPOSITORY, which is made if it does not exist. Others give
            hf://OWNER/REPOSITORY to `from_pretrained`.
          private: whether a new repository is visible only to its owner.
          **options: `metrics` and `license` of `save_pretrained`.

        Returns:
          The URL of the repository.

        Raises:
          ConfigError: as `save_pretrained`.
          OutputError: if the Hub refuses, or the disk is full.
        """
        repository = repository.removeprefix(hub.PREFIX)
        hub.check_repository(repository)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=f"{hub.PREFIX}{repository}", **options)
            return hub.upload(pathlib.Path(folder), repository, private)

    @property
    def has_segments(self) -> bool:
        """Whether `segments` is there: the model has a Mask2Former head, and is not a mean."""
        return not self._others and isinstance(self._model.decode_head, Mask2FormerHead)

    def _segmentation(self, image, classes, path, probabilities):
        def computed():
            return self.probabilities(image) if probabilities is None else probabilities

        segments = functools.partial(self.segments, image)
        return Segmentation(image, classes, self.dataset, path, computed, segments)

    @property
    def _num_classes(self):
        # Some published heads have more outputs than their dataset has classes.
        return len(self.dataset.classes)

    @functools.cached_property
    def _predictor(self):
        mesh = make_mesh({"data": len(self._devices), "fsdp": 1}, self._devices)
        variables = jax.device_put(self._variables, NamedSharding(mesh, PartitionSpec()))
        others = [other._predictor for other in self._others]
        return make_predictor(self._model, variables, self.config, mesh, self._num_classes, others)


def _bgr(image):
    """Converts RGB to BGR, the order of OpenCV, which the transforms take."""
    return np.ascontiguousarray(image[..., ::-1])


@functools.partial(jax.jit, static_argnums=0)
def _last_prediction(model, variables, image):
    """Returns Mask2Former's class logits [q, k + 1] and mask logits [q, h, w] of one image."""
    masks = apply_model(model, variables, image[None])[0].masks
    return masks.class_logits[-1, 0], masks.mask_logits[-1, 0]
