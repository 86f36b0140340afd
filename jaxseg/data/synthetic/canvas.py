"""A picture and its label map, painted together in metres through a pinhole camera.

World coordinates: x to the right of the camera, y up from the ground, z ahead of it, in metres.
Colors are RGB. Painting goes from far to near; what is painted later covers what was there.
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
    """focal, horizon (row) and center (column of the vanishing point) in pixels, eye in metres."""

    focal: float
    horizon: float
    center: float
    eye: float

    def project(self, points) -> np.ndarray:
        """[n, 3] metres -> [n, 2] pixels (column, row); z must be positive."""
        points = np.asarray(points, np.float64)
        pixels = (points[:, :2] - (0, self.eye)) / points[:, 2:]
        return pixels * (self.focal, -self.focal) + (self.center, self.horizon)


class Canvas:
    """image: uint8 [h, w, 3]; label: uint8 [h, w] of raw ids. Far things fade into `haze`."""

    def __init__(self, hw, camera: Camera, haze, visibility: float):
        self.image = np.zeros((*hw, 3), np.uint8)
        self.label = np.zeros(hw, np.uint8)
        self.camera, self.haze, self.visibility = camera, np.array(haze, np.float32), visibility

    def fade(self, color, z: float) -> np.ndarray:
        """A color (or colors [..., 3]) as seen from `z` metres away."""
        clear = math.exp(-z / self.visibility)
        return color * np.float32(clear) + self.haze * np.float32(1 - clear)

    def first_visible(self, x: float) -> float:
        """How far ahead a thing at `x` must be to stand within the picture."""
        camera, width = self.camera, self.label.shape[1]
        return camera.focal * abs(x) / (camera.center if x < 0 else width - camera.center)

    def polygon(self, points, color, label: int | None = None) -> None:
        """A filled polygon of 3-D points; one without a label or without a color leaves that as
        it was."""
        points = np.asarray(points, np.float64)
        self.fill(self.camera.project(points), points[:, 2].min(), color, label)

    def fill(self, corners, z: float, color, label: int | None) -> None:
        """The same for a polygon that is projected already: pixels [n, 2] at the distance z."""
        corners = [self._fixed_point(corners)]
        if color is not None:
            color = self.fade(np.asarray(color), z).tolist()
            cv2.fillPoly(self.image, corners, color, cv2.LINE_AA, SUBPIXEL_BITS)
        if label is not None:
            cv2.fillPoly(self.label, corners, label, cv2.LINE_8, SUBPIXEL_BITS)

    def shade(self, points, factor: float) -> None:
        """Darkens a polygon of 3-D points to a share of its brightness, for shadows."""
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
        """A picture stretched over a quadrilateral: top left, top right, bottom right, bottom left.

        texture: uint8 [h, w, 3], or [h, w, 4] with the opacity last. The label covers what is more
        than half opaque, but a fence (with its gaps) as a whole.
        """
        corners = np.asarray(corners, np.float64)
        projected = self.camera.project(corners)
        box, origin = self._box(projected)
        if box is None:
            return
        height, width, depth = texture.shape
        source = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
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
        return Pen(self, x, z, squeeze)

    def _fixed_point(self, points) -> np.ndarray:
        # The half: OpenCV counts from the center of the first pixel, the camera from its edge.
        return np.rint((points - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)

    def _box(self, points):
        """The part of the canvas around projected points, and its top left corner."""
        height, width = self.label.shape
        left, top = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, (width, height)).astype(int)
        if right - left < 1 or bottom - top < 1:
            return None, None
        return (slice(top, bottom), slice(left, right)), np.array([left, top])


@dataclass
class Pen:
    """Draws flat figures that face the camera, in metres around a point on the ground.

    squeeze: the width of the figure, for things seen at an angle; negative mirrors it.
    """

    canvas: Canvas
    x: float
    z: float
    squeeze: float

    def polygon(self, points, color, label=None) -> None:
        camera, scale = self.canvas.camera, self.canvas.camera.focal / self.z
        origin = (camera.center + self.x * scale, camera.horizon + camera.eye * scale)
        corners = np.asarray(points) * (scale * self.squeeze, -scale) + origin
        self.canvas.fill(corners, self.z, color, label)

    def box(self, left, bottom, right, top, color, label=None) -> None:
        self.polygon([(left, bottom), (right, bottom), (right, top), (left, top)], color, label)

    def disc(self, center, radius, color, label=None, corners=14) -> None:
        self.polygon(circle(corners) * radius + center, color, label)

    def line(self, start, end, width, color, label=None) -> None:
        start, end = np.array(start, float), np.array(end, float)
        along = (end - start) / max(np.hypot(*(end - start)), 1e-6)
        side = np.array([-along[1], along[0]]) * width / 2
        self.polygon([start + side, end + side, end - side, start - side], color, label)


@functools.cache
def circle(corners: int) -> np.ndarray:
    """[n, 2] on the unit circle; with 8 corners the sides of an octagon lie level."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + np.pi / corners
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points.flags.writeable = False
    return points


def mix(a, b, share: float) -> np.ndarray:
    """Between two colors: `a` at 0, `b` at 1."""
    return np.asarray(a, np.float64) * (1 - share) + np.asarray(b, np.float64) * share


def pick(rng, options):
    """One of a sequence (numpy's `choice` would turn it into an array first)."""
    return options[int(rng.integers(len(options)))]
