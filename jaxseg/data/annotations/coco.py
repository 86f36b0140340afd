"""Labels drawn from COCO's JSON files: one file for all images of a split.

Files of instances hold polygons and run lengths for every object. Panoptic files name a picture for
every image, whose colors are the numbers of segments. https://cocodataset.org/#format-data
"""

import collections
import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jaxseg.data.annotations import run_lengths
from jaxseg.data.annotations.color_masks import color_codes
from jaxseg.data.annotations.drawn_label import Canvas, DrawnLabel, LabelInFile
from jaxseg.data.annotations.labelme import FAULTS, read_json
from jaxseg.data.datasets.description import ClassNames
from jaxseg.data.decoding import pictures
from jaxseg.errors import ConfigError, DataError

VOID = 0  # of the segments of a panoptic picture
FARTHEST = 4  # corners of polygons, in image sizes
KEPT_FILES = 4  # whose labels stay in memory, so that a file is not read for every use


class Object(NamedTuple):
    """An object of an image.

    Attributes:
      number: the id of its annotation.
      segmentation: its polygons or run lengths.
      train_id: its class.
    """

    number: Any
    segmentation: Any
    train_id: int


class InstanceLabel(DrawnLabel):
    """The label of an image whose objects are polygons or run lengths."""

    def __init__(
        self,
        file: Path,
        image: str,
        hw: tuple[int, int],
        objects: Sequence[Object],
        background: int,
    ):
        """Describes a label.

        Args:
          file: the JSON file.
          image: the image's file name in it.
          hw: the image's (height, width).
          objects: the objects, the lowest one first.
          background: the train id of what no object covers.
        """
        self.file, self.image, self.hw = file, image, hw
        self.objects, self.background = objects, background

    @property
    def stem(self) -> str:
        return PurePosixPath(self.image).stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def __str__(self) -> str:
        return f"{self.file} ({self.image})"

    def find_hw(self) -> tuple[int, int]:
        return self.hw

    def draw(self) -> Canvas:
        """Draws the objects in the order of the file."""
        canvas = Canvas(self.hw, self.background)
        for number, segmentation, train_id in self.objects:
            try:
                part, corner = _draw(segmentation, self.hw)
            except FAULTS as error:
                raise DataError(
                    f"{self}: the annotation {number} cannot be drawn: {error}"
                ) from error
            canvas.draw(part, train_id, corner)
        return canvas


def _draw(segmentation, hw):
    """Returns the mask of an object in a part of the image, and the (y, x) of that part.

    An aerial image has hundreds of small objects, so that only a part is looked at.
    """
    if not segmentation:
        raise ValueError("it has no segmentation; a box alone covers no pixels")
    if not isinstance(segmentation, Mapping):
        return _draw_polygons(segmentation, hw)
    if list(segmentation["size"]) != list(hw):
        raise ValueError(f"run lengths of {segmentation['size']}, not of {hw[0]}x{hw[1]}")
    counts = segmentation["counts"]
    lengths = np.array(run_lengths.decompress(counts) if isinstance(counts, str) else counts)
    return run_lengths.columns(lengths, hw)


def _draw_polygons(polygons, hw):
    tools, (height, width) = _mask_tools(), hw
    for polygon in polygons:
        if len(polygon) < 6:
            raise ValueError("a polygon has fewer than three corners")
        # pycocotools ends the program for numbers that are not finite, or far away.
        farthest = np.abs(np.asarray(polygon, float)).max()
        if not farthest <= FARTHEST * max(hw):
            raise ValueError(f"a corner at {farthest:g} is far outside of {height}x{width} pixels")
    runs = tools.merge(tools.frPyObjects(polygons, height, width))
    left, top, box_width, box_height = map(int, tools.toBbox(runs))
    part = tools.decode(runs)[top : top + box_height, left : left + box_width]
    return part.astype(bool), (top, left)


def _mask_tools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ConfigError(f"{error}; install it: pip install 'jaxseg[coco]'") from error
    return mask


class PanopticLabel(LabelInFile):
    """The label of an image whose segments are numbers in a color picture."""

    def __init__(self, picture: Path, train_ids: Mapping[int, int], background: int):
        """Describes a label.

        Args:
          picture: the picture; segment R + 256·G + 65536·B has the color (R, G, B).
          train_ids: the train id of each segment.
          background: the train id of pixels without a segment.
        """
        super().__init__(picture)
        self.train_ids, self.background = train_ids, background

    def find_hw(self) -> tuple[int, int]:
        return pictures.raw_label_hw(self.file)

    def draw(self) -> Canvas:
        """Draws the segments.

        Raises:
          DataError: if the picture cannot be read, or has a segment that the file does not list.
        """
        segments = color_codes(pictures.read_colors(self.file)[..., ::-1])
        canvas = Canvas(segments.shape, self.background)
        found, place = np.unique(segments, return_inverse=True)
        train_ids = {VOID: self.background, **self.train_ids}
        if missing := [number for number in found.tolist() if number not in train_ids]:
            raise DataError(
                f"{self.file} has the segment {missing[0]}, which its JSON file does not list"
            )
        table = np.array([train_ids[number] for number in found.tolist()], np.uint8)
        canvas.label[:] = table[place].reshape(segments.shape)
        return canvas


def labels(file: Path, names: ClassNames) -> Mapping[str, DrawnLabel]:
    """Reads a file of instances or a panoptic file.

    Panoptic pictures lie in the folder of the file's name without its suffix.

    Returns:
      The label of each image, by the image's file name.

    Raises:
      ConfigError: if the package pycocotools is missing.
      DataError: if the file cannot be read, lists no images or no annotations, lists an image
        twice, or has categories without a class.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    version = status.st_mtime_ns, status.st_size
    return _labels(file, version, tuple(names.train_ids.items()), names.background)


@functools.lru_cache(KEPT_FILES)
def _labels(file, version, train_ids, background):
    """Reads a file in the given version."""
    del version
    names = ClassNames(dict(train_ids), background)
    content = read_json(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise DataError(
                f"{file} has no {key}. A COCO file has images, annotations and categories; was it"
                " exported before anything was drawn?"
            )
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = _images(file, content["images"])
        annotations = collections.defaultdict(list)
        for annotation in content["annotations"]:
            number = annotation["image_id"]
            _check_listed(images, number, "image", file)
            annotations[number].append(annotation)
        train_ids = _TrainIds(file, names, categories)
        return {
            _file_name(entry): _label(file, entry, annotations[number], train_ids)
            for number, entry in images.items()
        }
    except DataError:
        raise
    except FAULTS as error:
        raise DataError(
            f"{file} is not a COCO file: {type(error).__name__}: {error} in its images,"
            " annotations or categories"
        ) from error


def _file_name(image: Mapping[str, Any]) -> str:
    return str(image["file_name"]).replace("\\", "/")  # as tools on Windows write it


def _images(file, entries):
    """Returns the images by their id."""
    for what, counted in (
        ("id", [entry["id"] for entry in entries]),
        ("file_name", map(_file_name, entries)),
    ):
        value, count = collections.Counter(counted).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"{file} lists {count} images with the {what} {value!r}; join them to one, so that"
                " no annotation is lost"
            )
    return {entry["id"]: entry for entry in entries}


class _TrainIds(NamedTuple):
    """Finds the train id of an annotation's category."""

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
        if len(annotations) > 1:
            raise DataError(f"{file} has {len(annotations)} annotations of {_file_name(image)}")
        (annotation,) = annotations
        segments = {part["id"]: train_ids(part) for part in annotation["segments_info"]}
        return PanopticLabel(file.with_suffix("") / annotation["file_name"], segments, background)
    _mask_tools()  # a missing package shows before the first label is drawn
    objects = [
        Object(each.get("id"), _compact(each.get("segmentation")), train_ids(each))
        for each in annotations
    ]
    hw = int(image["height"]), int(image["width"])
    return InstanceLabel(file, _file_name(image), hw, objects, background)


def _compact(segmentation):
    """Returns polygons as arrays, which take a quarter of the memory, also in each worker."""
    if isinstance(segmentation, list):
        with contextlib.suppress(TypeError, ValueError):
            return [np.array(polygon, float) for polygon in segmentation]
    return segmentation  # if it is no polygon, drawing it says so
