"""Segments images with a trained model, in Python or from the command line.

    jaxseg predict --checkpoint RUN --out DIR IMAGE|FOLDER ...

NAME_classes.png holds the class of every pixel, NAME_overlay.png shows the classes over the image.
"""

import argparse
import contextlib
import functools
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from jaxseg import configure_cpu
from jaxseg.atomic_files import write_png, write_text
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device, load_saved_config
from jaxseg.data import picture_files, transforms
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.decoding import pictures
from jaxseg.data.source import evaluated_on
from jaxseg.distributed import start
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError, DataError, exit_with_message, first_few
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.inference.predictor import make_predictor
from jaxseg.inference.segments import Segments, instance_segments, panoptic_segments
from jaxseg.models import kernels
from jaxseg.models.heads.mask2former_head import Mask2FormerHead
from jaxseg.models.segmentation_model import SegmentationModel, Variables, apply_model, build_model
from jaxseg.reporting import visualize


class Segmenter:
    """A trained model, ready to segment images; it needs no dataset and no config file.

    Attributes:
      config: the config that the model was trained with.
      dataset: the dataset that it was evaluated on, with class names and colors.
    """

    def __init__(
        self, config: ConfigDict, dataset: Dataset, model: SegmentationModel, variables: Variables
    ):
        self.config, self.dataset = config, dataset
        self._model, self._variables = model, variables

    @classmethod
    def from_checkpoint(cls, path: str | pathlib.Path) -> "Segmenter":
        """Loads a run's best checkpoint, or the checkpoint that `path` points to.

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
        return cls(config, dataset, model, variables)

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w k"]:
        """Returns the class probabilities of an RGB image, at its own size.

        The image is seen in the views and windows of the model's evaluation, on one device.

        Raises:
          ValueError: for anything but an RGB uint8 array.
        """
        return self._predictor.probabilities(_bgr(image))

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Returns the class of every pixel of an RGB image; `dataset.classes` has the names.

        Raises:
          ValueError: for anything but an RGB uint8 array.
        """
        (classes,) = self._predictor.class_maps([_bgr(image)])
        return classes

    def warm_up(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Compiles the programs for images of these sizes, so that the first ones take no longer.

        Args:
          sizes: (height, width) of every image.

        Returns:
          The number of programs of the model so far. Models of convolutions run images of many
          sizes in a few programs; the others need one for each size of the network's input.
        """
        return self._predictor.warm_up(sizes)

    def segments(self, image: UInt8[np.ndarray, "h w 3"], *, overlapping: bool = False) -> Segments:
        """Returns the segments that Mask2Former finds in an RGB image.

        The model sees the image as a whole, whatever `config.eval.mode` says: in windows, each
        window would have queries of its own.

        Args:
          image: RGB.
          overlapping: return a segment for every query (`segments.instance_segments`), not those
            of high confidence that do not overlap (`segments.panoptic_segments`).

        Raises:
          ConfigError: for a model with another head.
          ValueError: for anything but an RGB uint8 array.
        """
        if not isinstance(self._model.decode_head, Mask2FormerHead):
            raise ConfigError(
                "segments come from the queries of a mask2former head, and this model's is"
                f" config.model.decode_head.kind={self.config.model.decode_head.kind}"
            )
        prepared = transforms.test_transform(_bgr(image), self.config.data)
        predicted = _last_prediction(self._model, self._variables, prepared)
        read = instance_segments if overlapping else panoptic_segments
        return read(*predicted, prepared.shape[:2], image.shape[:2], self._num_classes)

    @property
    def _num_classes(self):
        # Some published heads have more outputs than their dataset has classes.
        return len(self.dataset.classes)

    @functools.cached_property
    def _predictor(self):
        mesh = make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1])
        return make_predictor(self._model, self._variables, self.config, mesh, self._num_classes)


def _bgr(image):
    """Converts RGB to BGR, the order of OpenCV, which the transforms take."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an RGB uint8 image [h, w, 3] is needed, not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image[..., ::-1])


@functools.partial(jax.jit, static_argnums=0)
def _last_prediction(model, variables, image):
    """Returns Mask2Former's class logits [q, k + 1] and mask logits [q, h, w] of one image."""
    masks = apply_model(model, variables, image[None])[0].masks
    return masks.class_logits[-1, 0], masks.mask_logits[-1, 0]


class Input(NamedTuple):
    """An image to segment.

    Attributes:
      file: the image file.
      name: the path of its results below the output folder, without suffix.
    """

    file: pathlib.Path
    name: pathlib.Path


def find_images(inputs: Sequence[str]) -> tuple[list[Input], list[picture_files.Skipped]]:
    """Lists the given files, and all images in the given folders.

    Returns:
      The images, and what was not taken of the folders.

    Raises:
      DataError: for a missing file, a folder without images, or two images of the same name.
    """
    found: dict[pathlib.Path, pathlib.Path] = {}
    skipped = []
    for given in map(pathlib.Path, inputs):
        if given.is_dir():
            listed = picture_files.find(given)
            skipped += listed.skipped
            if not listed.names:
                kinds = " ".join(picture_files.SUFFIXES)
                lines = "".join(f"\n  {line}" for line in picture_files.describe(listed.skipped))
                raise DataError(f"no images ({kinds}) in the folder {given}{lines}")
            names = list(map(pathlib.Path, listed.names))
            images = [given / name for name in names]
        elif given.is_file():
            images, names = [given], [pathlib.Path(given.name)]
        else:
            found_there = "is not a regular file" if given.exists() else "does not exist"
            raise DataError(f"{given} {found_there}")
        for image, name in zip(images, names, strict=True):
            name = name.with_suffix("")
            if name in found:
                raise DataError(
                    f"{found[name]} and {image} would both be written as {name}; predict them into"
                    " different --out folders"
                )
            found[name] = image
    return [Input(image, name) for name, image in found.items()], skipped


def _warm_up(segmenter, images):
    """Compiles what the images need. Those that cannot be read are reported when they are due."""
    sizes, start = set(), time.monotonic()
    for image in images:
        with contextlib.suppress(DataError):
            sizes.add(pictures.image_hw(image.file))
    programs = segmenter.warm_up(sorted(sizes))
    seconds = time.monotonic() - start
    print(f"{programs} programs for {len(sizes)} image sizes, ready after {seconds:.0f} s")


def predict_files(
    segmenter: Segmenter, inputs: Sequence[str], out: pathlib.Path, warm_up: bool = False
):
    """Writes NAME_classes.png and NAME_overlay.png for every image, and prints a line for each.

    An image that cannot be read does not end the others.

    Args:
      segmenter: the trained model.
      inputs: image files and folders.
      out: the folder for the results.
      warm_up: compile everything before the first image.

    Raises:
      DataError: if an input is missing; at the end, if images could not be read, with their names.
      OutputError: if a result cannot be written.
    """
    images, skipped = find_images(inputs)
    for line in picture_files.describe(skipped):
        print(line)
    if numbered := visualize.numbered_names(segmenter.dataset.classes):
        write_text(out / "legend.txt", "".join(f"{line}\n" for line in numbered))
        print(f"no font here can draw all class names; {out / 'legend.txt'} lists them by number")
    if warm_up:
        _warm_up(segmenter, images)
    unreadable = []
    for path, name in images:
        try:
            image = np.ascontiguousarray(pictures.read_image(path)[..., ::-1])
        except DataError as error:
            unreadable.append(error)
            print(error)
            continue
        classes = segmenter(image)
        dataset = segmenter.dataset
        picture = visualize.prediction_picture(image, classes, dataset.classes, dataset.palette)
        results = [out / f"{name}{suffix}" for suffix in picture_files.RESULTS]
        for file, pixels in zip(results, (classes, picture), strict=True):
            write_png(file, pixels)
        shares = np.bincount(classes.ravel(), minlength=len(dataset.classes)) / classes.size
        largest = [f"{dataset.classes[k]} {shares[k]:.0%}" for k in np.argsort(-shares)[:3]]
        print(f"{path} -> {', '.join(map(str, results))}  ({', '.join(largest)})", flush=True)
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(images)} images were not segmented:"
            f"{first_few(unreadable, len(unreadable))}"
        )


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="a run's directory or checkpoints/STEP")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results")
    parser.add_argument(
        "--warmup", action="store_true", help="compile for all images before the first one is due"
    )
    parser.add_argument("inputs", nargs="+", metavar="IMAGE|FOLDER")
    options = parser.parse_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg predict"):
        start.use_compile_cache()
        start.check_platform()
        segmenter = Segmenter.from_checkpoint(options.checkpoint)
        predict_files(segmenter, options.inputs, options.out, options.warmup)


if __name__ == "__main__":
    main()
