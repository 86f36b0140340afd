"""Labels drawn from COCO's JSON files: one file for all images of a split.

Files of instances hold polygons and run lengths for every object. Panoptic files name a picture for
every image, whose colors are the numbers of segments. https://cocodataset.org/#format-data
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseg.data.annotations.color_masks import color_codes
from jaxseg.data.annotations.drawn_label import Canvas, DrawnLabel
from jaxseg.data.annotations.labelme import read_json
from jaxseg.data.datasets.description import ClassNames
from jaxseg.data.decoding import pictures
from jaxseg.errors import ConfigError, DataError

VOID = 0  # of the segments of a panoptic picture


class InstanceLabel(DrawnLabel):
    """The label of an image whose objects are polygons or run lengths."""

    def __init__(
        self,
        file: Path,
        image: str,
        hw: tuple[int, int],
        objects: Sequence[tuple[Any, int]],
        background: int,
    ):
        """Describes a label.

        Args:
          file: the JSON file, for messages.
          image: the image's file name in it.
          hw: the image's (height, width).
          objects: the segmentation and the train id of each object, the lowest one first.
          background: the train id of what no object covers.
        """
        self.file, self.image, self.hw = file, image, hw
        self.objects, self.background = objects, background

    @property
    def stem(self) -> str:
        return Path(self.image).stem

    def __str__(self) -> str:
        return f"{self.file} ({self.image})"

    def draw(self) -> Canvas:
        """Draws the objects in the order of the file."""
        canvas = Canvas(self.hw, self.background)
        for segmentation, train_id in self.objects:
            canvas.draw(_mask(segmentation, self.hw, self), train_id)
        return canvas


def _mask(segmentation: Any, hw: tuple[int, int], label: InstanceLabel) -> np.ndarray:
    """Draws the segmentation of an object: polygons or run lengths."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ConfigError(f"{error}; install it: pip install 'jaxseg[coco]'") from error
    tools: Any = coco_mask  # its types are narrower than what it takes
    height, width = hw
    try:
        if isinstance(segmentation, Mapping):
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"run lengths of {segmentation['size']}, not of {height}x{width}")
            if isinstance(segmentation["counts"], str):
                runs = dict(segmentation, counts=segmentation["counts"].encode())
            else:
                runs = tools.frPyObjects(segmentation, height, width)
        else:
            if not segmentation or min(map(len, segmentation)) < 6:
                raise ValueError("a polygon has fewer than three corners")
            runs = tools.merge(tools.frPyObjects(segmentation, height, width))
        return tools.decode(runs).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{label}: a segmentation cannot be drawn: {error}") from error


class PanopticLabel(DrawnLabel):
    """The label of an image whose segments are numbers in a color picture."""

    def __init__(self, picture: Path, train_ids: Mapping[int, int], background: int):
        """Describes a label.

        Args:
          picture: the picture; segment R + 256·G + 65536·B has the color (R, G, B).
          train_ids: the train id of each segment.
          background: the train id of pixels without a segment.
        """
        self.picture, self.train_ids, self.background = picture, train_ids, background

    @property
    def stem(self) -> str:
        return self.picture.stem

    def __str__(self) -> str:
        return str(self.picture)

    def draw(self) -> Canvas:
        """Draws the segments.

        Raises:
          DataError: if the picture cannot be read, or has a segment that the file does not list.
        """
        segments = color_codes(pictures.read_colors(self.picture)[..., ::-1])
        canvas = Canvas(segments.shape, self.background)
        found = np.unique(segments)
        if missing := [int(k) for k in found if k != VOID and int(k) not in self.train_ids]:
            raise DataError(
                f"{self.picture} has the segment {missing[0]}, which its JSON file does not list"
            )
        for segment in found[found != VOID]:
            canvas.draw(segments == segment, self.train_ids[int(segment)])
        return canvas


def labels(file: Path, names: ClassNames) -> dict[str, DrawnLabel]:
    """Reads a file of instances or a panoptic file.

    Panoptic pictures lie in the folder of the file's name without its suffix.

    Returns:
      The label of each image, by the image's file name.

    Raises:
      DataError: if the file cannot be read, lists no images or no annotations, or has categories
        without a class.
    """
    content = read_json(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise DataError(
                f"{file} has no {key}. A COCO file has images, annotations and categories; was it"
                " exported before anything was drawn?"
            )
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {entry["id"]: entry for entry in content["images"]}
        annotations = collections.defaultdict(list)
        for annotation in content["annotations"]:
            number = annotation["image_id"]
            _check_listed(images, number, "image", file)
            annotations[number].append(annotation)
        train_ids = _TrainIds(file, names, categories)
        return {
            str(entry["file_name"]): _label(file, entry, annotations[number], train_ids)
            for number, entry in images.items()
        }
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is not a COCO file: {type(error).__name__}: {error} in its images,"
            " annotations or categories"
        ) from error


class _TrainIds(NamedTuple):
    """Returns the train id of an annotation's category."""

    file: Path
    names: ClassNames
    categories: Mapping[int, str]

    def __call__(self, annotation: Mapping[str, Any]) -> int:
        category = annotation["category_id"]
        _check_listed(self.categories, category, "category", self.file)
        return self.names.train_id(self.categories[category], self.file)


def _check_listed(listed, number, what, file):
    if number not in listed:
        raise DataError(
            f"{file}: an annotation has the {what} {number}, which the file does not list"
        )


def _label(file, image, annotations, train_ids):
    background = train_ids.names.background
    if annotations and "segments_info" in annotations[0]:
        (annotation,) = annotations
        segments = {part["id"]: train_ids(part) for part in annotation["segments_info"]}
        return PanopticLabel(file.with_suffix("") / annotation["file_name"], segments, background)
    objects = [(each["segmentation"], train_ids(each)) for each in annotations]
    hw = int(image["height"]), int(image["width"])
    return InstanceLabel(file, str(image["file_name"]), hw, objects, background)
