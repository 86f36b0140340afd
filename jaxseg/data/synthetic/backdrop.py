"""Paints what lies behind everything: the sky, the ground plane, and the end of the street."""

from dataclasses import dataclass

import cv2
import numpy as np

from jaxseg.data.synthetic import canvas as c
from jaxseg.data.synthetic.canvas import Canvas, mix, pick


@dataclass(frozen=True)
class Strip:
    """Describes a strip of the ground that runs along the street.

    Attributes:
      left: x of its left edge, in meters.
      right: x of its right edge, in meters.
      label: the raw id.
      color: RGB.
    """

    left: float
    right: float
    label: int
    color: tuple


GRAIN = {c.ROAD: 0.09, c.PARKING: 0.14, c.SIDEWALK: 0.10, c.TERRAIN: 0.30, c.RAILS: 0.30}


def sky(canvas: Canvas, zenith, cloudiness: float, rng) -> None:
    """Paints the sky: a gradient down to the haze at the horizon, with clouds."""
    rows, width = int(canvas.camera.horizon) + 2, canvas.label.shape[1]
    depth = np.linspace(0, 1, rows)[:, None, None] ** 1.5
    colors = np.broadcast_to(mix(zenith, canvas.haze, depth), (rows, width, 3))
    noise = sum(
        cv2.resize(rng.random(cells, np.float32), (width, rows), interpolation=cv2.INTER_CUBIC) * w
        for cells, w in (((3, 5), 0.55), ((7, 16), 0.45))
    )
    clouds = np.clip((noise - 0.62 + 0.25 * cloudiness) * 5, 0, 1)[..., None] * 0.85
    white = mix((250, 250, 252), canvas.haze, 0.25)
    canvas.image[:rows] = colors + (white - colors) * clouds
    canvas.label[:rows] = c.SKY


def ground(canvas: Canvas, strips: list[Strip], marks, shadow_edge, rng) -> None:
    """Paints the ground plane with its textures, computed per pixel.

    Args:
      strips: the strips of the ground, from left to right.
      marks: the road markings (kind, x, z). "dashed" and "solid" are lines along the road at x, and
        "zebra" lies across the road at z.
      shadow_edge: (side, z [n], reach [n]). Houses on `side` (-1 or 1) shade the ground beyond x =
        `reach` at the distance z. None means that there is no sun.
    """
    camera = canvas.camera
    height, width = canvas.label.shape
    top = int(camera.horizon) + 1
    z = camera.focal * camera.eye / (np.arange(top, height) + 0.5 - camera.horizon)
    z = np.clip(z, 0, 400).astype(np.float32)[:, None]  # [rows, 1]
    x = (np.arange(width) + 0.5 - camera.center).astype(np.float32) * z / camera.focal

    index = sum((x > strip.right).view(np.uint8) for strip in strips[:-1])
    color = np.array([strip.color for strip in strips], np.float32)[index]
    label = np.array([strip.label for strip in strips], np.uint8)[index]
    canvas.label[top:] = label

    tile = rng.random((64, 64), np.float32) * 2 - 1
    fine, coarse = (_sampled(tile, x, z, scale) for scale in (7.0, 0.9))
    amplitude = np.zeros(256, np.float32)
    amplitude[list(GRAIN)] = list(GRAIN.values())
    light = 1 + (fine + coarse) * amplitude[label]

    near = np.clip(1.4 - z / 22, 0, 1)
    joints = ((_cycle(x, 0.9) < 0.06) | (_cycle(z, 0.9) < 0.06)) & (label == c.SIDEWALK)
    light -= 0.22 * joints * near
    for strip in strips:
        if strip.label == c.SIDEWALK:
            kerb = strip.left if strip.left > 0 else strip.right
            light[(np.abs(x - kerb) < 0.14) & (label == c.SIDEWALK)] = 1.18
        if strip.label == c.RAILS:
            middle = (strip.left + strip.right) / 2
            sleepers = (label == c.RAILS) & (_cycle(z, 1.2) < 0.4) & (np.abs(x - middle) < 1.3)
            light[sleepers] *= 0.75
            for rail in (middle - 0.72, middle + 0.72):
                color[np.abs(x - rail) < 0.09] = (205, 208, 212)

    paint = np.zeros(x.shape, bool)
    for kind, mark_x, mark_z in marks:
        if kind == "zebra":
            paint |= (_cycle(x, 1.1) < 0.55) & (z > mark_z) & (z < mark_z + 3.2)
        else:
            line = np.abs(x - mark_x) < 0.08
            paint |= line & (_cycle(z, 7) < 3.5) if kind == "dashed" else line
    color[paint & (label == c.ROAD)] = (226, 226, 220)

    if shadow_edge is not None:
        side, at, reach = shadow_edge
        shaded = side * (x - np.interp(z, at, reach).astype(np.float32)) > 0
        light *= np.where(shaded, np.float32(0.62), np.float32(1))

    clear = np.exp(-z / canvas.visibility)[..., None]
    haze = canvas.haze.astype(np.float32)
    color = color * light[..., None] * clear + haze * (1 - clear)
    canvas.image[top:] = np.clip(color, 0, 255)


def _cycle(x, period):
    """Returns `x % period`, but is faster."""
    return x - np.floor(x / period) * period


def _sampled(tile, x, z, per_metre):
    """Repeats a tile over the ground, and fades it where it is finer than the pixels."""
    shape = x.shape
    columns = x * per_metre
    rows = np.broadcast_to(z * per_metre, shape)
    values = cv2.remap(tile, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return values * np.clip(24 / (z * per_metre**0.5 + 1e-3), 0, 1)


def street_end(canvas: Canvas, z: float, rng) -> None:
    """Paints houses and trees across the far end of the street."""
    x = -70.0
    while x < 70:
        width, tall = rng.uniform(7, 16), rng.uniform(7, 17)
        color = mix(pick(rng, FACADES), (104, 90, 80), 0.35)
        canvas.pen(x, z).box(0, 0, width, tall, color, c.BUILDING)
        for floor in np.arange(1.2, tall - 1.5, 3.0):
            canvas.pen(x, z).box(0.8, floor, width - 0.8, floor + 1.2, color * 0.72)
        x += width + rng.uniform(0, 2)
    for _ in range(14):
        pen, radius = canvas.pen(rng.uniform(-60, 60), z - 1), rng.uniform(2, 4.5)
        green = mix((70, 110, 60), (110, 135, 70), rng.random())
        pen.disc((0, radius * 0.8), radius, green, c.VEGETATION)


FACADES = (
    *((236, 219, 190), (222, 180, 150), (216, 200, 172), (206, 196, 184), (228, 190, 140)),
    *((214, 170, 156), (232, 228, 218)),
)
