"""Labels drawn from the JSON files of LabelMe: one file for each image, with shapes by name."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from jaxseg.data.annotations.drawn_label import Canvas, LabelInFile
from jaxseg.data.datasets.description import ClassNames
from jaxseg.data.decoding import pictures
from jaxseg.errors import CorruptFileError, DataError

CIRCLE_POINTS = 64  # of the polygon in place of a circle
# What values of another kind or size raise.
FAULTS = (ArithmeticError, LookupError, TypeError, ValueError, cv2.error)


class LabelMeLabel(LabelInFile):
    """The label of a JSON file of LabelMe."""

    def __init__(self, file: Path, names: ClassNames):
        super().__init__(file)
        self.names = names

    def find_hw(self) -> tuple[int, int]:
        return self._read()[0]

    def draw(self) -> Canvas:
        """Draws the shapes in the order of the file; the first one is at the bottom."""
        hw, shapes = self._read()
        canvas = Canvas(hw, self.names.background)
        for number, (name, shape) in enumerate(shapes):
            train_id = self.names.train_id(name, self.file)
            try:
                _draw(canvas, shape, train_id)
            except FAULTS as error:
                raise DataError(f"{self.file}: shape {number} ({name}): {error}") from error
        return canvas

    def _read(self):
        """Returns the size of the image, and the name and the content of each shape."""
        content = read_json(self.file)
        try:
            hw = int(content["imageHeight"]), int(content["imageWidth"])
            return hw, [(str(shape["label"]), shape) for shape in content["shapes"]]
        except FAULTS as error:
            raise DataError(
                f"{self.file} is not a file of LabelMe: it needs imageHeight, imageWidth and"
                f" shapes, each with a label ({type(error).__name__}: {error})"
            ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file of annotations.

    Raises:
      CorruptFileError: if it cannot be read.
      DataError: if it does not hold an object.
    """
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no annotations: its JSON is not an object")
    return content


def _draw(canvas, shape, train_id):
    kind = shape.get("shape_type") or "polygon"
    points = np.array(shape["points"], float).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a point is not a finite number")
    if kind == "mask":
        _draw_picture(canvas, shape, points, train_id)
        return
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * math.pi, CIRCLE_POINTS, endpoint=False)
        radius = math.hypot(*(points[1] - points[0]))
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind not in ("polygon", "rectangle", "circle"):
        raise ValueError(f"a shape of type {kind!r} has no area; draw a polygon, or remove it")
    if len(points) < 3:
        raise ValueError(f"a {kind} of {len(points)} points has no area")
    draw_polygon(canvas, points, train_id)


def draw_polygon(canvas: Canvas, points: np.ndarray, train_id: int) -> None:
    """Draws a polygon with its outline.

    Args:
      canvas: where to draw.
      points: the corners (x, y), float [n, 2]. Pixel (0, 0) reaches from 0 to 1.
      train_id: the class.
    """
    height, width = canvas.label.shape
    # A corner belongs to the pixel that it lies in. Far corners would overflow in OpenCV.
    corners = np.clip(np.floor(points), -(2**14), 2**14 + max(height, width)).astype(np.int32)
    low = np.maximum(corners.min(axis=0), 0)
    high = np.minimum(corners.max(axis=0) + 1, (width, height))
    if (high <= low).any():
        return
    part = np.zeros((high - low)[::-1], np.uint8)
    cv2.fillPoly(part, [corners - low], 1)
    canvas.draw(part.astype(bool), train_id, corner=(int(low[1]), int(low[0])))


def _draw_picture(canvas, shape, points, train_id):
    """Draws a shape that is a picture, in the rectangle of its two points."""
    (left, top), _ = np.floor(points).astype(int).tolist()
    content = base64.b64decode(shape["mask"], validate=True)
    part = pictures.read_raw_label(_InFile(content)) > 0
    if left < 0 or top < 0:
        raise ValueError("its rectangle begins outside of the image")
    height, width = canvas.label.shape
    part = part[: height - top, : width - left]
    canvas.draw(part, train_id, corner=(top, left))


class _InFile:
    """A picture that is stored inside of a JSON file."""

    stem = "mask"

    def __init__(self, content: bytes):
        self._content = content

    def __str__(self) -> str:
        return "its picture"

    def read_bytes(self) -> bytes:
        return self._content

    def open(self, mode: Literal["rb"]) -> io.BufferedIOBase:
        return io.BytesIO(self._content)
