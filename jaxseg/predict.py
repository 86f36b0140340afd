"""Masks for images: `Segmenter.from_checkpoint(RUN)(image)`, or from the command line

python -m jaxseg.predict --checkpoint RUN --out DIR IMAGE|FOLDER ...
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import cv2
import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from jaxseg import configure_cpu
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device, load_saved_config
from jaxseg.data import transforms
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.decoding import pictures
from jaxseg.data.source import evaluated_on
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError, DataError, exit_with_message
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.inference.predictor import make_predictor
from jaxseg.inference.segments import Segments, instance_segments, panoptic_segments
from jaxseg.models import kernels
from jaxseg.models.heads.mask2former_head import Mask2FormerHead
from jaxseg.models.segmentation_model import SegmentationModel, Variables, apply_model, build_model
from jaxseg.reporting import visualize

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A trained model with everything that belongs to it; needs no dataset and no config file.

    Attributes:
      config: what the model was trained with.
      dataset: its class names and colors; the one that the model was evaluated on.
    """

    config: ConfigDict
    dataset: Dataset
    _model: SegmentationModel
    _variables: Variables = dataclasses.field(repr=False)

    @classmethod
    def from_checkpoint(cls, path: str | pathlib.Path) -> "Segmenter":
        """Loads a run's best checkpoint, or the one that `path` points to.

        Raises:
          CheckpointError: where there is none.
          ConfigError: where its config describes sizes that the model cannot take.
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
        """Class probabilities of an RGB image, at its own size.

        In the views and windows in which the model was evaluated, on one device.

        Raises:
          ValueError: for anything but an RGB uint8 array.
        """
        return self._predictor.probabilities(_bgr(image))

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """The class of every pixel of an RGB image; names are in `dataset.classes`."""
        (classes,) = self._predictor.class_maps([_bgr(image)])
        return classes

    def segments(self, image: UInt8[np.ndarray, "h w 3"], *, overlapping: bool = False) -> Segments:
        """Masks, classes and confidences of the segments that Mask2Former finds in an RGB image.

        Sure segments that do not overlap (`segments.panoptic_segments`), or what every query says
        by itself (`segments.instance_segments`). The image goes through the network in one piece,
        whatever `config.eval.mode` says: each window would have queries of its own.

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
        # Some published heads have outputs beyond the dataset's classes; here they mean nothing.
        return len(self.dataset.classes)

    @functools.cached_property
    def _predictor(self):
        mesh = make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1])
        return make_predictor(self._model, self._variables, self.config, mesh, self._num_classes)


def _bgr(image):
    """As OpenCV reads images, which the transforms take."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an RGB uint8 image [h, w, 3] is needed, not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image[..., ::-1])


@functools.partial(jax.jit, static_argnums=0)
def _last_prediction(model, variables, image):
    """Class logits [q, k + 1] and mask logits [q, h, w] of one image, by a Mask2Former."""
    masks = apply_model(model, variables, image[None])[0].masks
    return masks.class_logits[-1, 0], masks.mask_logits[-1, 0]


def find_images(inputs: Sequence[str]) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(image, name below the output folder) of every file given, and of all images in folders.

    Raises:
      DataError: for what does not exist, a folder without images, or two of the same name.
    """
    found: dict[pathlib.Path, pathlib.Path] = {}
    for given in map(pathlib.Path, inputs):
        if given.is_dir():
            images = sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not images:
                raise DataError(f"no images ({' '.join(SUFFIXES)}) in the folder {given}")
            names = [image.relative_to(given) for image in images]
        elif given.is_file():
            images, names = [given], [pathlib.Path(given.name)]
        else:
            raise DataError(f"{given} does not exist")
        for image, name in zip(images, names, strict=True):
            name = name.with_suffix("")
            if name in found:
                raise DataError(
                    f"{found[name]} and {image} would both be written as {name}; predict them into"
                    " different --out folders"
                )
            found[name] = image
    return [(image, name) for name, image in found.items()]


def predict_files(segmenter: Segmenter, inputs: Sequence[str], out: pathlib.Path):
    """Writes NAME_classes.png (class ids) and NAME_overlay.png for every image; one line each."""
    for path, name in find_images(inputs):
        image = np.ascontiguousarray(pictures.read_image(path)[..., ::-1])
        classes = segmenter(image)
        dataset = segmenter.dataset
        picture = visualize.prediction_picture(image, classes, dataset.classes, dataset.palette)
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"{target}_classes.png", classes)
        cv2.imwrite(f"{target}_overlay.png", picture[..., ::-1])
        shares = np.bincount(classes.ravel(), minlength=len(dataset.classes)) / classes.size
        largest = [f"{dataset.classes[k]} {shares[k]:.0%}" for k in np.argsort(-shares)[:3]]
        print(f"{path} -> {target}_classes.png, {target}_overlay.png  ({', '.join(largest)})")


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(prog="jaxseg predict", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's directory or checkpoints/STEP")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE|FOLDER")
    options = parser.parse_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg predict"):
        predict_files(Segmenter.from_checkpoint(options.checkpoint), options.inputs, options.out)


if __name__ == "__main__":
    main()
