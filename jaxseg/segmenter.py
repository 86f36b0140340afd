"""A trained model that segments images: the part of jaxseg that most users hold."""

import functools
import itertools
import os
import pathlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from jaxseg import pretrained
from jaxseg.atomic_files import write_png
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device, load_saved_config
from jaxseg.data import picture_files, transforms
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.decoding import pictures
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
from jaxseg.reporting import visualize

Picture = str | os.PathLike | Image.Image | UInt8[np.ndarray, "_ _ 3"]


class Segmentation:
    """The classes of an image's pixels.

    Attributes:
      image: the image, RGB.
      classes: the class of every pixel.
      names: the name of every class.
      path: the file that the image came from, or None.
    """

    def __init__(
        self,
        segmenter: "Segmenter",
        image: UInt8[np.ndarray, "h w 3"],
        classes: UInt8[np.ndarray, "h w"],
        path: pathlib.Path | None,
        probabilities: Float[np.ndarray, "h w k"] | None = None,
    ):
        self.image, self.classes, self.path = image, classes, path
        self.names = segmenter.dataset.classes
        self._segmenter, self._probabilities = segmenter, probabilities

    def probabilities(self) -> Float[np.ndarray, "h w k"]:
        """Returns the probability of every class at every pixel.

        The model runs once more, unless `Segmenter.stream` was asked for probabilities.
        """
        if self._probabilities is not None:
            return self._probabilities
        return self._segmenter.probabilities(self.image)

    def segments(self, *, overlapping: bool = False) -> Segments:
        """Returns the segments of Mask2Former (`Segmenter.segments`). The model runs once more.

        Args:
          overlapping: return a segment for every query.

        Raises:
          ConfigError: for a model with another head.
        """
        return self._segmenter.segments(self.image, overlapping=overlapping)

    def shares(self) -> dict[str, float]:
        """Returns the share of the pixels of every class that occurs, the largest first."""
        counts = np.bincount(self.classes.ravel(), minlength=len(self.names))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        return {self.names[k]: float(counts[k] / self.classes.size) for k in order}

    def overlay(self, alpha: float = 0.5) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the image with the classes in color over it and a legend below.

        Args:
          alpha: the opacity of the colors, from 0 to 1.
        """
        palette = self._segmenter.dataset.palette
        return visualize.prediction_picture(self.image, self.classes, self.names, palette, alpha)

    def save(self, path: str | os.PathLike) -> list[pathlib.Path]:
        """Writes PATH_classes.png, the class of every pixel, and PATH_overlay.png.

        Args:
          path: the files without these ends, such as masks/photo.

        Returns:
          The two files.

        Raises:
          OutputError: if a file cannot be written.
        """
        ends = picture_files.CLASSES, picture_files.OVERLAY
        files = [pathlib.Path(f"{os.fspath(path)}{end}") for end in ends]
        for file, pixels in zip(files, (self.classes, self.overlay()), strict=True):
            write_png(file, pixels)
        return files


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
            PyTorch file; or a run's directory or one of its checkpoints. A list of these gives the
            mean of their class probabilities (`mean_of`).
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
        variables = load_on_device(checkpoint, model)
        check_image_sizes(config)
        return cls(config, dataset, model, variables, devices, os.fspath(path))

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
                yield Segmentation(self, pixels, classes, path)
            return
        for found in self._predictor.probability_maps(opened()):
            pixels, path = waiting.popleft()
            classes = np.argmax(found, axis=-1).astype(np.uint8)
            yield Segmentation(self, pixels, classes, path, found)

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

    @property
    def has_segments(self) -> bool:
        """Whether `segments` is there: the model has a Mask2Former head, and is not a mean."""
        return not self._others and isinstance(self._model.decode_head, Mask2FormerHead)

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


def open_picture(image: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image as an RGB array. Files and images of Pillow are rotated by their EXIF data.

    Raises:
      DataError: if a file cannot be read.
      ValueError: for an array that is not RGB uint8, or an image of Pillow with more than 8 bits.
    """
    if isinstance(image, (str, os.PathLike)):
        return np.ascontiguousarray(pictures.read_image(pathlib.Path(image))[..., ::-1])
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(f"an image of 8 bits is needed, not one of mode {image.mode}")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an RGB uint8 image [h, w, 3] is needed, not {image.dtype} {image.shape}")
    return image


def _bgr(image):
    """Converts RGB to BGR, the order of OpenCV, which the transforms take."""
    return np.ascontiguousarray(image[..., ::-1])


@functools.partial(jax.jit, static_argnums=0)
def _last_prediction(model, variables, image):
    """Returns Mask2Former's class logits [q, k + 1] and mask logits [q, h, w] of one image."""
    masks = apply_model(model, variables, image[None])[0].masks
    return masks.class_logits[-1, 0], masks.mask_logits[-1, 0]
