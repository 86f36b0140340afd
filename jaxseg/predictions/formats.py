"""The formats in which `jaxseg predict` writes the segmentation of images.

| format | files |
|---|---|
| png | NAME_classes.png: the class of every pixel |
| overlay | NAME_overlay.png: the classes in color over the image, with a legend |
| color | NAME_color.png: the classes in color |
| npz | NAME.npz: the arrays `classes` and, if they are there, `probabilities` |
| rle | predictions.json: regions of all images, in the form of COCO's results |
| panoptic | panoptic/NAME.png and panoptic.json: regions of all images, in COCO's panoptic form |
"""

import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Integer, UInt8

from jaxseg.atomic_files import replacing, write_png, write_text
from jaxseg.data import picture_files
from jaxseg.inference.segments import Segments
from jaxseg.predictions import regions, rle
from jaxseg.reporting import visualize

DEFAULT = ("png", "overlay")


class Look(NamedTuple):
    """How classes are named and shown.

    Attributes:
      names: the name of each class.
      palette: the color of each class, RGB.
      alpha: the opacity of colors over an image, from 0 to 1.
    """

    names: Sequence[str]
    palette: Integer[np.ndarray, "k 3"]
    alpha: float = 0.5


class Entry(NamedTuple):
    """An image in the list of all images.

    Attributes:
      number: its place in the list, which orders the files of the whole run.
      name: the path of its results below the output folder, without suffix.
      file_name: the path that the files of the whole run give it.
    """

    number: int
    name: pathlib.Path
    file_name: str


class Prediction(NamedTuple):
    """The segmentation of an image.

    Attributes:
      image: the image, RGB.
      classes: the class of every pixel.
      probabilities: the class probabilities of every pixel, or None.
      segments: the segments of Mask2Former, or None for other heads.
    """

    image: UInt8[np.ndarray, "h w 3"]
    classes: UInt8[np.ndarray, "h w"]
    probabilities: Float[np.ndarray, "h w k"] | None = None
    segments: Segments | None = None

    def regions(self) -> Iterator[regions.Region]:
        """Yields the segments, or one region for each class of the class map."""
        if self.segments is not None:
            return regions.of_segments(self.segments)
        return regions.of_class_map(self.classes, self.probabilities)


@runtime_checkable
class Writer(Protocol):
    """Writes predictions in one format. Several threads may call `write` at the same time."""

    def write(self, entry: Entry, prediction: Prediction) -> pathlib.Path:
        """Writes, or keeps, the prediction of an image, and returns the file that holds it.

        Raises:
          OutputError: if the file cannot be written.
        """
        ...

    def finish(self) -> None:
        """Writes the file of the whole run, if the format has one.

        Raises:
          OutputError: if it cannot be written.
        """
        ...


class PerImage:
    """Writes one file per image.

    Args:
      folder: the folder for the results.
      look: how classes are named and shown.
    """

    end = ""

    def __init__(self, folder: pathlib.Path, look: Look):
        self.folder, self.look = folder, look

    def write(self, entry: Entry, prediction: Prediction) -> pathlib.Path:
        file = self.folder / f"{entry.name}{self.end}"
        self._write(file, prediction)
        return file

    def finish(self) -> None:
        pass

    def _write(self, file: pathlib.Path, prediction: Prediction):
        raise NotImplementedError


class ClassMap(PerImage):
    """Writes the class of every pixel as a gray value."""

    end = picture_files.CLASSES

    def _write(self, file, prediction):
        write_png(file, prediction.classes)


class Overlay(PerImage):
    """Writes the image with the classes in color over it, and a legend below."""

    end = picture_files.OVERLAY

    def _write(self, file, prediction):
        names, palette, alpha = self.look
        picture = visualize.prediction_picture(
            prediction.image, prediction.classes, names, palette, alpha
        )
        write_png(file, picture)


class Color(PerImage):
    """Writes the classes in color."""

    end = picture_files.COLOR

    def _write(self, file, prediction):
        write_png(file, visualize.colorize(prediction.classes, self.look.palette))


class Arrays(PerImage):
    """Writes `classes`, uint8 [h, w], and if known `probabilities`, float16 [h, w, k]."""

    end = ".npz"

    def _write(self, file, prediction):
        with replacing(file) as partial, partial.open("wb") as opened:
            if prediction.probabilities is None:
                np.savez_compressed(opened, classes=prediction.classes)
            else:  # many, and hardly smaller when compressed
                half = prediction.probabilities.astype(np.float16)
                np.savez(opened, classes=prediction.classes, probabilities=half)


class CocoResults:
    """Writes predictions.json, the list of all regions that pycocotools' `loadRes` takes.

    Args:
      folder: the folder for the results.
      look: how classes are named.
    """

    def __init__(self, folder: pathlib.Path, look: Look):
        self._file, self._look = folder / "predictions.json", look
        self._found: dict[Entry, list[dict[str, Any]]] = {}

    def write(self, entry: Entry, prediction: Prediction) -> pathlib.Path:
        height, width = prediction.classes.shape
        found = [
            {
                "category_id": region.category,
                "category_name": self._look.names[region.category],
                "segmentation": {"size": [height, width], "counts": rle.encode(region.mask)},
                "area": region.area,
                "bbox": region.box,
                "score": region.confidence,
            }
            for region in prediction.regions()
        ]
        self._found[entry] = found
        return self._file

    def finish(self) -> None:
        results = [
            {"image_id": image_id, "file_name": entry.file_name} | region
            for entry, image_id in image_ids(self._found).items()
            for region in self._found[entry]
        ]
        write_text(self._file, json.dumps(results))


class CocoPanoptic:
    """Writes panoptic/NAME.png and panoptic.json, which panopticapi reads.

    The color of a pixel is the id of its region in base 256: red, then green, then blue. A region's
    id is its place in the image's list, counted from 1. Pixels of no region are 0. All classes are
    listed as "stuff", because datasets of semantic segmentation do not tell objects apart.

    Args:
      folder: the folder for the results.
      look: how classes are named and shown.
    """

    def __init__(self, folder: pathlib.Path, look: Look):
        self._look, self._pictures = look, folder / picture_files.PANOPTIC
        self._file = folder / f"{picture_files.PANOPTIC}.json"
        self._found: dict[Entry, tuple[tuple[int, int], list[dict[str, Any]]]] = {}

    def write(self, entry: Entry, prediction: Prediction) -> pathlib.Path:
        ids = np.zeros(prediction.classes.shape, np.int32)
        found = []
        for number, region in enumerate(prediction.regions(), 1):
            ids[region.mask] = number
            found.append(
                {
                    "id": number,
                    "category_id": region.category,
                    "area": region.area,
                    "bbox": region.box,
                    "iscrowd": 0,
                    "score": region.confidence,
                }
            )
        colors = np.stack([ids >> 8 * place & 255 for place in range(3)], axis=-1)
        file = self._pictures / f"{entry.name}.png"
        write_png(file, colors.astype(np.uint8))
        height, width = prediction.classes.shape
        self._found[entry] = (height, width), found
        return file

    def finish(self) -> None:
        images, annotations = [], []
        for entry, image_id in image_ids(self._found).items():
            (height, width), segments = self._found[entry]
            image = {"id": image_id, "file_name": entry.file_name}
            images.append(image | {"height": height, "width": width})
            picture = {"image_id": image_id, "file_name": f"{entry.name.as_posix()}.png"}
            annotations.append(picture | {"segments_info": segments})
        colors = np.asarray(self._look.palette).tolist()
        categories = [
            {"id": number, "name": name, "supercategory": name, "isthing": 0, "color": color}
            for number, (name, color) in enumerate(zip(self._look.names, colors, strict=True))
        ]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        write_text(self._file, json.dumps(whole))


FORMATS = {
    "png": ClassMap,
    "overlay": Overlay,
    "color": Color,
    "npz": Arrays,
    "rle": CocoResults,
    "panoptic": CocoPanoptic,
}
OF_REGIONS = {"rle", "panoptic"}  # formats that use the segments of Mask2Former


def make_writers(formats: Sequence[str], folder: pathlib.Path, look: Look) -> list[Writer]:
    """Returns a writer for each format, in the given order and each once.

    Args:
      formats: names in `FORMATS`.
      folder: the folder for the results.
      look: how classes are named and shown.
    """
    return [FORMATS[name](folder, look) for name in dict.fromkeys(formats)]


def image_ids(entries: Iterable[Entry]) -> dict[Entry, int]:
    """Returns the id of each image for COCO's files, in the order of the images.

    If all images are named by different numbers, as in COCO (000000000139.jpg), these are the ids.
    Otherwise images count from 1.
    """
    ordered = sorted(entries)
    stems = [entry.name.name for entry in ordered]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = list(map(int, stems))
        if len(set(numbers)) == len(numbers):
            return dict(zip(ordered, numbers, strict=True))
    return {entry: place for place, entry in enumerate(ordered, 1)}
