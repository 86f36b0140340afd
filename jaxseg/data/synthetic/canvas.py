"""Paints a picture and its label map together, in meters, through a pinhole camera.

World coordinates are in meters: x points to the right of the camera, y up from the ground, and z
ahead of the camera. Colors are RGB. Painting goes from far to near, and later paint covers earlier
paint.
"""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

# Raw Cityscapes label ids.
EGO, BORDER, STATIC, PARKING, RAILS = 1, 3, 4, 9, 10
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN = 7, 8, 11, 12, 13, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER = 21, 22, 23, 24, 25
CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 26, 27, 28, 31, 32, 33

SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Camera:
    """Describes a pinhole camera that looks along the street.

    Attributes:
      focal: the focal length in pixels.
      horizon: the row of the horizon, in pixels.
      center: the column of the vanishing point, in pixels.
      eye: the height of the camera in meters.
    """

    focal: float
    horizon: float
    center: float
    eye: float

    def project(self, points) -> np.ndarray:
        """Projects points [n, 3] in meters to pixels [n, 2] (column, row).

        z must be positive.
        """
        points = np.asarray(points, np.float64)
        pixels = (points[:, :2] - (0, self.eye)) / points[:, 2:]
        return pixels * (self.focal, -self.focal) + (self.center, self.horizon)


class Canvas:
    """Holds a picture and its label map; distant things fade into `haze`.

    Attributes:
      image: uint8 [h, w, 3] in RGB.
      label: uint8 [h, w] of raw ids.
      camera: the camera that sees the scene.
      haze: the color of the haze, in RGB.
      visibility: the distance in meters at which 1/e of a color is left.
    """

    def __init__(self, hw, camera: Camera, haze, visibility: float):
        self.image = np.zeros((*hw, 3), np.uint8)
        self.label: np.ndarray = np.zeros(hw, np.uint8)
        self.camera, self.haze, self.visibility = camera, np.array(haze, np.float32), visibility

    def fade(self, color, z: float) -> np.ndarray:
        """Returns a color (or colors [..., 3]) as seen from `z` meters away."""
        clear = math.exp(-z / self.visibility)
        return color * np.float32(clear) + self.haze * np.float32(1 - clear)

    def first_visible(self, x: float) -> float:
        """Returns how far ahead a thing at `x` must be to stand within the picture."""
        camera, width = self.camera, self.label.shape[1]
        return camera.focal * abs(x) / (camera.center if x < 0 else width - camera.center)

    def polygon(self, points, color, label: int | None = None) -> None:
        """Fills a polygon of 3-D points.

        Without a color the picture stays as it was. Without a label the label map does.
        """
        points = np.asarray(points, np.float64)
        self.fill(self.camera.project(points), points[:, 2].min(), color, label)

    def fill(self, corners, z: float, color, label: int | None) -> None:
        """Fills a projected polygon, pixels [n, 2], as `polygon` does.

        The color fades as at the distance `z`.
        """
        corners = [self._fixed_point(corners)]
        if color is not None:
            color = self.fade(np.asarray(color), z).tolist()
            cv2.fillPoly(self.image, corners, color, cv2.LINE_AA, SUBPIXEL_BITS)
        if label is not None:
            cv2.fillPoly(self.label, corners, label, cv2.LINE_8, SUBPIXEL_BITS)

    def shade(self, points, factor: float) -> None:
        """Casts a shadow on a polygon of 3-D points.

        Args:
          factor: the share of its brightness that remains.
        """
        corners = self.camera.project(points)
        box, origin = self._box(corners)
        if box is None:
            return
        view = self.image[box]
        mask = np.zeros(view.shape[:2], np.float32)
        cv2.fillPoly(mask, [self._fixed_point(corners - origin)], 1 - factor, 8, SUBPIXEL_BITS)
        mask = cv2.blur(mask, (5, 3))
        view[:] = view * (1 - mask[..., None])

    def texture(self, corners, texture: np.ndarray, label: int | None) -> None:
        """Stretches a picture over a quadrilateral.

        Args:
          corners: the 3-D points at the top left, top right, bottom right and bottom left.
          texture: uint8 [h, w, 3], or [h, w, 4] with the opacity last.
          label: covers the pixels that are more than half opaque. The label of a fence covers the
            whole quadrilateral, gaps included.
        """
        corners = np.asarray(corners, np.float64)
        projected = self.camera.project(corners)
        box, origin = self._box(projected)
        if box is None:
            return
        height, width, depth = texture.shape
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        target = projected - origin
        matrix = cv2.getPerspectiveTransform(source, target.astype(np.float32))
        view = self.image[box]
        size = view.shape[1::-1]
        warped = cv2.warpPerspective(texture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        inside = np.zeros(view.shape[:2], np.uint8)
        cv2.fillConvexPoly(inside, self._fixed_point(target), 255, cv2.LINE_AA, SUBPIXEL_BITS)
        opacity = inside.astype(np.float32) / 255
        solid = inside > 127
        if depth == 4:
            opacity *= warped[..., 3] / np.float32(255)
            if label != FENCE:
                solid &= warped[..., 3] > 127
        colors = self.fade(warped[..., :3].astype(np.float32), corners[:, 2].mean())
        view[:] = view + (colors - view) * opacity[..., None]
        if label is not None:
            self.label[box][solid] = label

    def pen(self, x: float, z: float, squeeze: float = 1.0) -> "Pen":
        """Returns a pen for a figure that stands at (x, z)."""
        return Pen(self, x, z, squeeze)

    def _fixed_point(self, points) -> np.ndarray:
        # Subtracts a half: OpenCV counts from the first pixel's center, the camera from its edge.
        return np.rint((points - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)

    def _box(self, points):
        """Returns the part of the canvas around projected points, and its top left corner.

        Both are None if no point lies on the canvas.
        """
        height, width = self.label.shape
        left, top = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, (width, height)).astype(int)
        if right - left < 1 or bottom - top < 1:
            return None, None
        return (slice(top, bottom), slice(left, right)), np.array([left, top])


@dataclass
class Pen:
    """Draws flat figures that face the camera, in meters around a point on the ground.

    Attributes:
      canvas: the canvas to draw on.
      x: the position of the point across the street.
      z: the distance of the point.
      squeeze: scales the width of the figure, for things seen at an angle. A negative value mirrors
        the figure.
    """

    canvas: Canvas
    x: float
    z: float
    squeeze: float

    def polygon(self, points, color, label=None) -> None:
        """Fills a polygon of points [n, 2]."""
        camera, scale = self.canvas.camera, self.canvas.camera.focal / self.z
        origin = (camera.center + self.x * scale, camera.horizon + camera.eye * scale)
        corners = np.asarray(points) * (scale * self.squeeze, -scale) + origin
        self.canvas.fill(corners, self.z, color, label)

    def box(self, left, bottom, right, top, color, label=None) -> None:
        """Fills an upright rectangle."""
        self.polygon([(left, bottom), (right, bottom), (right, top), (left, top)], color, label)

    def disc(self, center, radius, color, label=None, corners=14) -> None:
        """Fills a circle, which is drawn as a polygon with this number of corners."""
        self.polygon(circle(corners) * radius + center, color, label)

    def line(self, start, end, width, color, label=None) -> None:
        """Draws a line of a given width."""
        start, end = np.array(start, float), np.array(end, float)
        along = (end - start) / max(np.hypot(*(end - start)), 1e-6)
        side = np.array([-along[1], along[0]]) * width / 2
        self.polygon([start + side, end + side, end - side, start - side], color, label)


@functools.cache
def circle(corners: int) -> np.ndarray:
    """Returns the corners of a regular polygon on the unit circle, [n, 2].

    With 8 corners, the top and bottom sides of the octagon are level.
    """
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + np.pi / corners
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points.flags.writeable = False
    return points


def mix(a, b, share: float | np.ndarray) -> np.ndarray:
    """Mixes two colors: a share of 0 gives `a`, and a share of 1 gives `b`."""
    return np.asarray(a, np.float64) * (1 - share) + np.asarray(b, np.float64) * share


def pick(rng, options):
    """Picks one element of a sequence at random.

    numpy's `choice` would convert the sequence to an array first.
    """
    return options[int(rng.integers(len(options)))]
