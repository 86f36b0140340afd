"""Paints what stands at the roadside: trees, hedges, lamp posts, traffic lights and signs."""

import functools

import cv2
import numpy as np

from jaxseg.data.synthetic import canvas as c
from jaxseg.data.synthetic.canvas import Canvas, circle, mix, pick

METAL = (84, 98, 118)


@functools.cache
def _foliage(kind: int) -> tuple[np.ndarray, ...]:
    """Returns a crown of leaves, uint8 [s, s, 4] at decreasing sizes s.

    It is made once, and is the same in every scene.
    """
    rng = np.random.default_rng(kind)
    size = 128
    crown = np.zeros((size, size, 4), np.uint8)
    lobes = rng.uniform(-0.55, 0.55, (9, 2)) * (1.0, 0.8)
    dabs = [
        (lobe + rng.normal(0, 0.17, 2), rng.uniform(0.05, 0.13))
        for lobe in lobes
        for _ in range(45)
    ]
    # Dark dabs come first, so that light ones lie on top.
    dabs.sort(key=lambda dab: -dab[0][1] + rng.normal(0, 0.25))
    for (dx, dy), radius in dabs:
        height = np.clip(0.5 - dy * 0.55 + dx * 0.15 + rng.normal(0, 0.12), 0, 1)
        tone = (255 * (0.42 + 0.58 * height),) * 3
        center = (int(size * (0.5 + dx * 0.5)), int(size * (0.5 + dy * 0.5)))
        cv2.circle(crown, center, int(size * radius * 0.5), (*tone, 255), -1, cv2.LINE_AA)
    sizes = (128, 64, 32, 16)
    return tuple(cv2.resize(crown, (s, s), interpolation=cv2.INTER_AREA) for s in sizes)


def foliage(canvas: Canvas, x, z, bottom, width, height, color, rng) -> None:
    """Paints a mass of leaves, `width` by `height` meters."""
    pixels = canvas.camera.focal / z * max(width, height)
    sizes = _foliage(int(rng.integers(6)))
    crown = next((s for s in reversed(sizes) if s.shape[0] >= pixels), sizes[0])
    crown = cv2.multiply(crown, np.array((*np.divide(color, 255), 1)))
    left, right = (x - width / 2, x + width / 2)[:: pick(rng, (1, -1))]
    top = bottom + height
    corners = [(left, top, z), (right, top, z), (right, bottom, z), (left, bottom, z)]
    canvas.texture(corners, crown, c.VEGETATION)


def _green(rng) -> np.ndarray:
    leaves = pick(rng, ((66, 118, 44), (52, 100, 48), (84, 128, 50)))
    return mix(leaves, (140, 110, 50), rng.random() * 0.3)


def tree(canvas: Canvas, x, z, rng) -> None:
    """Paints a tree with a trunk and a crown of leaves."""
    height, color = rng.uniform(5, 9), _green(rng)
    trunk = mix((96, 74, 54), (124, 112, 100), rng.random())
    pen = canvas.pen(x, z)
    canvas.shade(blot(x, z, 1.6), 0.7)
    half = rng.uniform(0.16, 0.24)
    pen.polygon(
        [(-half, 0), (half, 0), (half * 0.7, height * 0.6), (-half * 0.7, height * 0.6)],
        trunk,
        c.VEGETATION,
    )
    pen.box(0, 0, half * 0.6, height * 0.5, trunk * 0.75)
    width = height * rng.uniform(0.55, 0.75)
    foliage(canvas, x, z, height * 0.3, width, height * 0.75, color, rng)


def hedge(canvas: Canvas, x, near, far, rng) -> None:
    """Paints a hedge along the street."""
    height, color = rng.uniform(0.9, 1.7), _green(rng)
    for z in np.arange(far, near, -1.1):
        foliage(canvas, x, z, -0.2, 2.0, height + 0.2, color * rng.uniform(0.9, 1.1), rng)


def lamp_post(canvas: Canvas, x, z, rng) -> None:
    """Paints a lamp post: a pole with an arm over the road."""
    pen, height = canvas.pen(x, z), rng.uniform(5.5, 7.5)
    reach = -np.sign(x) * rng.uniform(1.2, 2.2)
    _post(pen, height, 0.2, METAL)
    pen.line((0, height - 0.1), (reach, height + 0.25), 0.14, METAL, c.POLE)
    left, right = sorted((reach * 0.75, reach * 1.3))
    pen.box(left, height + 0.12, right, height + 0.34, (222, 220, 206), c.POLE)


def _post(pen, height, width, color) -> None:
    half = width / 2
    pen.box(-half, 0, half, height, color, c.POLE)
    pen.box(-half, 0, -half * 0.3, height, np.asarray(color) * 1.35)
    pen.box(half * 0.4, 0, half, height, np.asarray(color) * 0.65)


def traffic_light(canvas: Canvas, x, z, rng) -> None:
    """Paints a traffic light: a dark housing on a post, with one of its three lamps lit."""
    pen, bottom = canvas.pen(x, z), rng.uniform(2.1, 2.6)
    _post(pen, bottom + 0.1, 0.17, METAL)
    pen.box(-0.4, bottom - 0.1, 0.4, bottom + 1.6, (240, 232, 200), c.LIGHT)
    pen.box(-0.31, bottom, 0.31, bottom + 1.5, (30, 32, 34), c.LIGHT)
    lit = int(rng.integers(3))
    lamps = ((60, 210, 110), (250, 190, 50), (235, 50, 45))
    for index, color in enumerate(lamps):
        center = (0, bottom + 0.27 + 0.48 * index)
        pen.disc(center, 0.2, color if index == lit else np.multiply(color, 0.28), c.LIGHT)
        if index == lit:
            pen.disc(center, 0.1, mix(color, 255, 0.6))


def traffic_sign(canvas: Canvas, x, z, rng) -> None:
    """Paints one of seven kinds of traffic sign on a post."""
    pen, middle = canvas.pen(x, z), rng.uniform(2.2, 2.7)
    _post(pen, middle + 0.3, 0.13, METAL)
    red, white, blue = (206, 32, 40), (246, 246, 244), (30, 90, 180)
    kind = pick(rng, ("stop", "warning", "limit", "blue", "priority", "parking", "noentry"))
    label = c.SIGN
    if kind == "stop":
        pen.disc((0, middle), 0.55, white, label, 8)
        pen.disc((0, middle), 0.5, red, label, 8)
        pen.box(-0.32, middle - 0.1, 0.32, middle + 0.1, white)
    elif kind == "warning":
        triangle = np.array([(-0.62, -0.45), (0.62, -0.45), (0, 0.62)])
        pen.polygon(np.add(triangle, (0, middle)), red, label)
        pen.polygon(triangle * 0.64 + (0, middle - 0.03), white, label)
        pen.box(-0.05, middle - 0.18, 0.05, middle + 0.2, (30, 30, 30))
    elif kind == "limit":
        pen.disc((0, middle), 0.54, red, label)
        pen.disc((0, middle), 0.4, white, label)
        for left in (-0.24, 0.04):
            pen.box(left, middle - 0.17, left + 0.19, middle + 0.17, (35, 35, 35))
    elif kind == "noentry":
        pen.disc((0, middle), 0.54, red, label)
        pen.box(-0.36, middle - 0.1, 0.36, middle + 0.1, white)
    elif kind == "blue":
        pen.disc((0, middle), 0.54, white, label)
        pen.disc((0, middle), 0.49, blue, label)
        pen.line((-0.05, middle - 0.3), (-0.05, middle + 0.15), 0.14, white)
        pen.polygon([(-0.25, middle + 0.08), (0.15, middle + 0.08), (-0.05, middle + 0.36)], white)
    elif kind == "priority":
        diamond = np.array([(-0.62, 0), (0, 0.62), (0.62, 0), (0, -0.62)])
        pen.polygon(np.add(diamond, (0, middle)), white, label)
        pen.polygon(diamond * 0.7 + (0, middle), (246, 200, 40), label)
    else:
        pen.box(-0.48, middle - 0.48, 0.48, middle + 0.48, white, label)
        pen.box(-0.43, middle - 0.43, 0.43, middle + 0.43, blue, label)
        pen.box(-0.2, middle - 0.3, -0.06, middle + 0.3, white)
        pen.disc((0.02, middle + 0.12), 0.2, white)
        pen.disc((0.02, middle + 0.12), 0.08, blue)


def bin_or_box(canvas: Canvas, x, z, rng) -> None:
    """Paints street furniture that belongs to no class."""
    pen = canvas.pen(x, z)
    color = np.array(pick(rng, ((70, 96, 72), (196, 150, 60), (80, 80, 90))))
    canvas.shade(blot(x, z, 0.6), 0.7)
    pen.box(-0.35, 0, 0.35, 1.05, color, c.STATIC)
    pen.box(-0.4, 0.95, 0.4, 1.15, color * 1.2, c.STATIC)
    pen.box(0.1, 0, 0.35, 0.95, color * 0.8)


def blot(x, z, radius):
    """Returns the corners of a flat polygon on the ground, for a contact shadow."""
    rim = circle(12) * (radius, radius * 0.6) + (x, z)
    return np.insert(rim, 1, 0.0, axis=1)
