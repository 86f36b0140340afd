"""Paints people on foot, bicycles and motorcycles, and their riders."""

import numpy as np

from jaxseg.data.synthetic import canvas as c
from jaxseg.data.synthetic.canvas import Canvas, Pen, circle, pick
from jaxseg.data.synthetic.roadside import blot

SKIN = ((240, 204, 176), (214, 168, 134), (160, 112, 82), (104, 70, 52))
HAIR = ((44, 34, 30), (90, 62, 40), (190, 154, 96), (150, 148, 146), (130, 60, 36))
CLOTHES = (
    *((176, 60, 140), (206, 96, 176), (132, 60, 166), (226, 130, 186), (190, 48, 120)),
    *((150, 90, 190), (236, 150, 200)),
)
# Riders wear high-visibility suits and helmets.
SUITS = ((206, 236, 50), (224, 244, 90), (176, 214, 40))
HELMETS = ((250, 250, 244), (236, 240, 200), (214, 236, 70))
TROUSERS = ((48, 56, 84), (38, 38, 44), (120, 104, 84), (86, 92, 100), (70, 100, 140))
RUBBER = (34, 34, 38)


def person(canvas: Canvas, x, z, rng) -> None:
    """Paints a person who stands or walks, 1.2 to 1.9 m tall."""
    tall = rng.uniform(1.55, 1.9) if rng.random() < 0.85 else rng.uniform(1.2, 1.4)
    canvas.shade(blot(x, z, 0.45), 0.65)
    # The figure is drawn for a height of 1.8 m, then scaled. Like a toy, it is wider than life.
    pen = Scaled(canvas.pen(x, z, squeeze=pick(rng, (-1, 1)) * 1.25), tall / 1.8)
    top, legs = np.array(pick(rng, CLOTHES)), np.array(pick(rng, TROUSERS))
    skin, hair = np.array(pick(rng, SKIN)), pick(rng, HAIR)
    stride = rng.uniform(0.02, 0.3)
    label = c.PERSON
    if rng.random() < 0.5:  # a coat or a dress
        pen.line((-0.08, 0.6), (-0.08, 0.05), 0.13, legs, label)
        pen.line((0.09, 0.6), (0.09, 0.05), 0.13, legs * 0.8, label)
        pen.polygon([(-0.27, 0.46), (0.27, 0.46), (0.16, 0.98), (-0.16, 0.98)], top * 0.9, label)
    else:
        pen.line((0.06, 0.92), (stride, 0.06), 0.16, legs * 0.75, label)
        pen.line((-0.06, 0.92), (-stride, 0.06), 0.17, legs, label)
    for foot, shade in ((stride, 0.8), (-stride, 1.0)):
        pen.box(foot - 0.08, 0, foot + 0.16, 0.1, np.array((50, 44, 42)) * shade, label)
    swing = stride * 0.9
    pen.line((0.16, 1.42), (0.2 + swing * 0.6, 0.92), 0.1, top * 0.7, label)
    pen.polygon(
        [(-0.18, 0.88), (0.18, 0.88), (0.24, 1.3), (0.17, 1.5), (-0.17, 1.5), (-0.24, 1.3)],
        top,
        label,
    )
    pen.polygon([(0.06, 0.88), (0.18, 0.88), (0.24, 1.3), (0.17, 1.5), (0.1, 1.5)], top * 0.82)
    pen.line((-0.19, 1.42), (-0.22 - swing * 0.6, 0.95), 0.1, top * 0.88, label)
    pen.disc((-0.22 - swing * 0.6, 0.92), 0.06, skin, label, 8)
    pen.box(-0.05, 1.46, 0.05, 1.58, skin * 0.85, label)
    pen.disc((0, 1.66), 0.135, skin, label)
    pen.polygon([(-0.15, 1.62), (-0.14, 1.78), (0, 1.83), (0.14, 1.78), (0.06, 1.72)], hair, label)
    extra = rng.random()
    if extra < 0.3:  # a bag
        pen.box(-0.42, 0.72, -0.2, 1.02, pick(rng, CLOTHES), label)
    elif extra < 0.5:  # a backpack
        pen.box(-0.32, 1.02, -0.17, 1.42, pick(rng, CLOTHES), label)


def bicycle(canvas: Canvas, x, z, rng, squeeze: float | None = None) -> None:
    """Paints a bicycle, seen from the side or at an angle.

    Args:
      squeeze: scales the width, as in `Pen`. Below 1, the bicycle is seen at an angle; a negative
        value turns it the other way. None draws a value.
    """
    canvas.shade(blot(x, z, 0.7), 0.75)
    pen = canvas.pen(x, z, squeeze=squeeze or _turned(rng))
    frame = np.array(pick(rng, ((30, 160, 170), (40, 180, 180), (20, 130, 150))))
    label = c.BICYCLE
    hub_back, hub_front, crank = (-0.54, 0.36), (0.54, 0.36), (-0.08, 0.32)
    saddle, head = (-0.2, 0.9), (0.4, 0.92)
    for hub in (hub_back, hub_front):
        _wheel(pen, hub, 0.36, label)
    for start, end in (
        *((hub_back, crank), (hub_back, saddle), (crank, saddle), (crank, head)),
        *((saddle, head), (hub_front, head)),
    ):
        pen.line(start, end, 0.1, frame, label)
    pen.line((-0.34, 0.94), (-0.08, 0.94), 0.1, RUBBER, label)
    pen.line(head, (0.34, 1.08), 0.06, frame, label)
    pen.line((0.24, 1.08), (0.46, 1.06), 0.07, RUBBER, label)
    pen.disc(crank, 0.1, (90, 90, 94), label, 8)


def motorcycle(canvas: Canvas, x, z, rng, squeeze: float | None = None) -> None:
    """Paints a motorcycle.

    Args:
      squeeze: as in `bicycle`.
    """
    canvas.shade(blot(x, z, 0.9), 0.7)
    pen = canvas.pen(x, z, squeeze=squeeze or _turned(rng))
    paint = np.array(pick(rng, ((190, 30, 34), (150, 24, 30), (214, 50, 40))))
    label = c.MOTORCYCLE
    for hub in ((-0.7, 0.34), (0.72, 0.34)):
        pen.disc(hub, 0.35, RUBBER, label)
        pen.disc(hub, 0.25, (196, 198, 204))
        pen.disc(hub, 0.13, paint)
    pen.polygon([(-0.5, 0.28), (0.42, 0.28), (0.5, 0.7), (-0.5, 0.7)], (172, 174, 182), label)
    pen.disc((0.0, 0.45), 0.2, (120, 122, 130))
    pen.line((-0.95, 0.42), (0.1, 0.3), 0.11, (196, 198, 202), label)  # exhaust
    pen.polygon([(-0.95, 0.86), (-0.85, 0.66), (0.1, 0.66), (0.1, 0.86)], (96, 30, 34), label)
    pen.polygon([(-0.05, 0.7), (0.5, 0.66), (0.62, 0.9), (0.3, 1.06), (0.0, 0.94)], paint, label)
    pen.polygon([(-1.02, 0.9), (-0.6, 0.68), (-0.5, 0.8), (-0.9, 1.0)], paint * 0.85, label)
    pen.line((0.72, 0.36), (0.5, 1.06), 0.11, (160, 162, 168), label)
    pen.line((0.32, 1.14), (0.56, 1.1), 0.09, RUBBER, label)
    pen.polygon([(0.52, 0.86), (0.72, 0.9), (0.7, 1.12), (0.5, 1.2)], paint, label)
    pen.disc((0.71, 0.98), 0.1, (250, 246, 214), label, 8)


def rider(canvas: Canvas, x, z, kind: int, rng) -> None:
    """Paints a person on a bicycle or motorcycle, along the street or across it.

    Args:
      kind: the label of the vehicle, BICYCLE or MOTORCYCLE.
    """
    squeeze, motor = _turned(rng), kind == c.MOTORCYCLE
    (motorcycle if motor else bicycle)(canvas, x, z, rng, squeeze)
    # The body keeps most of its width, even if the vehicle is foreshortened.
    pen = canvas.pen(x, z, squeeze=np.sign(squeeze) * max(abs(squeeze), 0.8) * 1.15)
    seat = (-0.3, 0.86) if motor else (-0.22, 0.98)
    hand = (0.36, 1.12) if motor else (0.32, 1.12)
    foot = (0.0, 0.3) if motor else (-0.06 + rng.uniform(-0.1, 0.12), 0.24 + rng.uniform(0, 0.2))
    knee = (0.24, 0.78) if motor else (0.22, 0.74)
    shoulder = (seat[0] + 0.3, seat[1] + 0.55)
    jacket = np.array(pick(rng, SUITS))
    legs, skin = jacket * 0.72, np.array(pick(rng, SKIN))
    label = c.RIDER
    pen.line(seat, knee, 0.21, legs, label)
    pen.line(knee, foot, 0.17, legs * 0.85, label)
    pen.box(foot[0] - 0.06, foot[1] - 0.08, foot[0] + 0.2, foot[1] + 0.04, (44, 40, 40), label)
    (sx, sy), (tx, ty) = seat, shoulder
    torso = [(sx - 0.16, sy), (sx + 0.14, sy - 0.02), (tx + 0.16, ty - 0.06), (tx - 0.1, ty + 0.08)]
    pen.polygon(torso, jacket, label)
    elbow = ((shoulder[0] + hand[0]) / 2 + 0.02, (shoulder[1] + hand[1]) / 2 - 0.1)
    pen.line(shoulder, elbow, 0.14, jacket * 0.8, label)
    pen.line(elbow, hand, 0.11, jacket * 0.8, label)
    head = (shoulder[0] + 0.1, shoulder[1] + 0.24)
    pen.disc(head, 0.15, skin, label)
    helmet = np.array(pick(rng, HELMETS))
    dome = [(-0.18, 0.0), (-0.16, 0.12), (-0.05, 0.2), (0.08, 0.19), (0.17, 0.1), (0.19, 0.02)]
    if motor:
        pen.disc(head, 0.19, helmet, label)
        pen.box(head[0] + 0.02, head[1] - 0.06, head[0] + 0.18, head[1] + 0.06, (36, 40, 50))
    else:
        pen.polygon(np.add(dome, head), helmet, label)


def _turned(rng) -> float:
    return pick(rng, (-1, 1)) * rng.uniform(0.6, 1)


def _wheel(pen: Pen, hub, radius, label) -> None:
    """Paints a tire and spokes."""
    rim = circle(15)
    rim = np.concatenate([rim, rim[:1]])
    ring = np.concatenate([rim * radius, rim[::-1] * (radius - 0.085)]) + hub
    pen.disc(hub, radius, (168, 206, 206), label)
    pen.polygon(ring, RUBBER)
    for turn in (0.3, 1.35, 2.4):
        spoke = np.array([np.cos(turn), np.sin(turn)]) * (radius - 0.05)
        pen.line(hub - spoke, hub + spoke, 0.03, (110, 120, 124))


class Scaled:
    """Draws like a `Pen`, but scales the whole figure."""

    def __init__(self, pen: Pen, scale: float):
        self.pen, self.scale = pen, scale

    def polygon(self, points, color, label=None):
        self.pen.polygon(np.asarray(points) * self.scale, color, label)

    box, disc, line = Pen.box, Pen.disc, Pen.line
