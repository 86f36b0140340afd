"""Paints cars, trucks, buses and trams: outlines seen from the side, extruded to their width."""

import itertools

import numpy as np

from jaxseg.data.synthetic import canvas as c
from jaxseg.data.synthetic.canvas import Canvas, circle, mix, pick

# Every kind has its own colors, like the fleets of a town, so that a small network learns the kinds
# in minutes. The shapes differ too, and the colors change with the light.
CARS = (
    (52, 92, 168),
    (34, 58, 112),
    (216, 220, 226),
    (160, 166, 176),
    (58, 64, 76),
    (96, 140, 190),
)
LORRIES = ((206, 162, 104), (190, 140, 84), (222, 190, 140))
CABS = ((186, 92, 40), (164, 74, 36))
BUSES = ((238, 190, 36), (226, 166, 26), (246, 208, 70))
TRAMS = ((24, 104, 84), (30, 122, 92), (18, 88, 78))
GLASS = (46, 58, 76)
TYRE, RIM = (30, 30, 33), (156, 158, 162)


class Body:
    """Paints the parts of one vehicle in its place.

    Outlines are points (along, height) in meters, where `along` counts from 0 at the rear.

    Args:
      x: the position of the vehicle's middle.
      z: the distance of its near end.
      away: whether it drives away from the camera, not toward it.
    """

    def __init__(self, canvas: Canvas, x, z, width, length, label, away: bool):
        self.canvas, self.x, self.z, self.label = canvas, x, z, label
        self.width, self.length, self.away = width, length, away
        footprint = ((-0.58, -0.25), (0.58, -0.25), (0.58, length + 0.2), (-0.58, length + 0.2))
        canvas.shade([(x + a * width, 0, z + b) for a, b in footprint], 0.42)

    def place(self, along: float) -> float:
        """Returns the distance z of a point of the outline."""
        return self.z + (along if self.away else self.length - along)

    @property
    def near(self) -> float:
        """The position of the near end along the outline."""
        return 0 if self.away else self.length

    def hull(self, outline, color, side_shade=0.9) -> None:
        """Paints a body with this outline: its ends, its top and its visible side."""
        color = np.asarray(color, np.float64)
        edges = itertools.pairwise(outline)
        for start, end in sorted(edges, key=lambda e: -self.place(e[0][0]) - self.place(e[1][0])):
            rise, run = abs(end[1] - start[1]), abs(end[0] - start[0])
            tone = 1.12 - 0.34 * rise / (rise + run)  # surfaces that face up are lit by the sky
            self.across(start, end, -0.5, 0.5, color * tone, self.label)
        self.flank(outline, color * side_shade, self.label)

    def across(self, start, end, left, right, color, label=None) -> None:
        """Paints a surface across the vehicle, between two points of the outline.

        Args:
          left: the left end, as a share of the width.
          right: the right end, as a share of the width.
        """
        (a0, h0), (a1, h1) = start, end
        x0, x1, z0, z1 = (
            self.x + left * self.width,
            self.x + right * self.width,
            *map(self.place, (a0, a1)),
        )
        self.canvas.polygon([(x0, h0, z0), (x1, h0, z0), (x1, h1, z1), (x0, h1, z1)], color, label)

    def near_end(self, left, bottom, right, top, color, label=None) -> None:
        """Paints a rectangle on the end that faces the camera."""
        self.across((self.near, bottom), (self.near, top), left, right, color, label)

    def flank(self, outline, color, label=None) -> None:
        """Paints a polygon on the side that faces the camera, if one does."""
        side = self.x - np.sign(self.x) * self.width / 2
        if side * self.x > 0:
            points = [(side, height, self.place(along)) for along, height in outline]
            self.canvas.polygon(points, color, label)

    def windows(self, first, last, bottom, top, panes: int, color) -> None:
        """Paints a row of panes along the side."""
        pane = (last - first) / panes
        for left in first + pane * np.arange(panes):
            self.flank(rectangle(left + 0.06, bottom, left + pane - 0.06, top), color)

    def wheels(self, positions, radius) -> None:
        """Paints the wheels on the side, and those at the near end."""
        rim = circle(14) * radius
        for along in positions:
            self.flank(np.add(rim, (along, radius)), TYRE, self.label)
            self.flank(rim * 0.55 + (along, radius), RIM)
        for middle in (-0.37, 0.37):
            self.near_end(middle - 0.08, 0, middle + 0.08, radius, TYRE, self.label)

    def lamps(self, height, half=0.1) -> None:
        """Paints the two lamps of the near end: tail lamps or headlamps."""
        color = (216, 34, 36) if self.away else (255, 250, 224)
        for left, right in ((-0.47, -0.3), (0.3, 0.47)):
            self.near_end(left, height - half, right, height + half, color)

    def number_plate(self, height) -> None:
        """Paints the license plate of the near end."""
        self.near_end(-0.15, height, 0.15, height + 0.14, (236, 236, 228))


def rectangle(left, bottom, right, top):
    """Returns the corners of a rectangle."""
    return [(left, bottom), (left, top), (right, top), (right, bottom)]


def between(start, end, share):
    """Returns the point at a share of the way from `start` to `end`."""
    return tuple(s + (e - s) * share for s, e in zip(start, end, strict=True))


def car(canvas: Canvas, x, z, away: bool, rng) -> None:
    """Paints a sedan, station wagon, small car or van."""
    length, roof, boot, slope, bonnet = pick(
        rng,
        (
            (4.5, 1.45, 0.9, 0.7, 1.1),
            (4.6, 1.52, 0.08, 0.5, 1.1),
            (3.7, 1.52, 0.08, 0.4, 0.8),
            (4.9, 2.0, 0.04, 0.15, 0.7),
        ),
    )
    waist, paint = roof * 0.62, np.array(pick(rng, CARS), np.float64)
    body = Body(canvas, x, z, 1.85, length, c.CAR, away)
    screen = length - bonnet  # where the windshield meets the hood
    rear, front = ((boot, waist), (boot + slope, roof)), ((screen, waist), (screen - 0.75, roof))
    body.hull(
        [(0, 0.28), (0, waist - 0.06), rear[0], front[0], (length, waist * 0.82), (length, 0.28)],
        paint,
    )
    body.wheels((0.8, length - 0.85), 0.33)
    body.hull([rear[0], rear[1], front[1], front[0]], paint)
    glass = mix(GLASS, canvas.haze, rng.uniform(0.1, 0.35))
    pane = rear if away else front
    body.across(between(*pane, 0.1), between(*pane, 0.88), -0.42, 0.42, glass)
    middle = (boot + slope + screen - 0.75) / 2
    for left, right in (((boot + slope * 0.5), middle - 0.06), (middle + 0.06, screen - 0.45)):
        lean = 0.25 * (right - left)
        first = left < middle - 0.5 and right < middle
        body.flank(
            [
                (left, waist + 0.04),
                (left + (lean if first else 0), roof - 0.1),
                (right - (0 if first else lean), roof - 0.1),
                (right, waist + 0.04),
            ],
            glass,
        )
    body.near_end(-0.5, 0.28, 0.5, 0.42, paint * 0.45)
    if not away:
        body.near_end(-0.25, 0.46, 0.25, 0.6, (40, 42, 46))
    body.lamps(waist * 0.74, 0.09)
    body.number_plate(0.43)


def lorry(canvas: Canvas, x, z, away: bool, rng) -> None:
    """Paints a truck: a cab, and a box or tarpaulin on a chassis."""
    length, box_top = rng.uniform(7, 9), rng.uniform(3.1, 3.7)
    cab_paint = np.array(pick(rng, CABS), np.float64)
    load = np.array(pick(rng, LORRIES), np.float64)
    body = Body(canvas, x, z, 2.45, length, c.TRUCK, away)
    load_end = length - 2.3

    def cab():
        start = load_end + 0.15
        body.hull(
            [(start, 0.5), (start, 2.7), (length - 0.35, 2.7), (length, 1.5), (length, 0.5)],
            cab_paint,
        )
        body.flank(rectangle(start + 0.7, 1.6, length - 0.35, 2.35), GLASS)
        if not away:
            body.across(
                (length, 1.52), (length - 0.3, 2.52), -0.43, 0.43, mix(GLASS, canvas.haze, 0.3)
            )
            body.near_end(-0.34, 0.85, 0.34, 1.35, (52, 54, 58))
            body.near_end(-0.5, 0.4, 0.5, 0.62, cab_paint * 0.5, c.TRUCK)

    def freight():
        body.hull([(0, 1.0), (0, box_top), (load_end, box_top), (load_end, 1.0)], load)
        for along in np.arange(0.8, load_end, 0.8):  # ribs
            body.flank(rectangle(along - 0.05, 1.0, along + 0.05, box_top), load * 0.74)
        stripe = np.array(pick(rng, CABS))
        body.flank(rectangle(0.5, 1.9, load_end - 0.5, 2.5), stripe)
        body.flank(rectangle(0, 0.55, load_end, 1.0), (58, 60, 64), c.TRUCK)
        if away:
            for left, right in ((-0.47, -0.02), (0.02, 0.47)):
                body.near_end(left, 1.1, right, box_top - 0.12, load * 0.7)
            body.near_end(-0.35, 1.9, 0.35, 2.5, stripe * 0.85)
            body.near_end(-0.5, 0.55, 0.5, 1.0, (52, 54, 58), c.TRUCK)
            for left in np.arange(-0.48, 0.4, 0.2):
                body.near_end(left, 0.66, left + 0.1, 0.84, (226, 70, 40))

    for part in (cab, freight) if away else (freight, cab):
        part()
    body.wheels((0.9, 2.0, length - 1.2), 0.5)
    body.lamps(0.92, 0.1)
    body.number_plate(0.6)


def bus(canvas: Canvas, x, z, away: bool, rng) -> None:
    """Paints a city bus: one color, a dark band of windows, a lit destination sign."""
    paint, length, top = np.array(pick(rng, BUSES), np.float64), rng.uniform(9.5, 12), 3.05
    body = Body(canvas, x, z, 2.55, length, c.BUS, away)
    body.hull([(0, 0.35), (0, top), (length, top), (length, 0.35)], paint)
    glass = mix(GLASS, canvas.haze, 0.2)
    body.flank(rectangle(0.3, 1.35, length - 0.1, 2.55), (36, 38, 44))
    body.windows(0.4, length - 0.3, 1.42, 2.48, 7, glass)
    for door in (length - 1.6, length * 0.5):
        body.flank(rectangle(door, 0.42, door + 1.2, 2.5), mix(glass, 20, 0.3))
        body.flank(rectangle(door + 0.56, 0.42, door + 0.64, 2.5), paint * 0.6)
    body.wheels((2.4, length - 2.7), 0.48)
    body.near_end(-0.46, 1.2 if not away else 1.7, 0.46, 2.45, glass)
    body.near_end(-0.36, 2.56, 0.36, 2.9, (30, 30, 34))
    for left in np.arange(-0.28, 0.2, 0.12):
        body.near_end(left, 2.64, left + 0.07, 2.82, (255, 190, 60))
    body.near_end(-0.5, 0.35, 0.5, 0.55, paint * 0.45)
    body.lamps(0.85, 0.14)
    body.number_plate(0.58)


def tram(canvas: Canvas, x, z, away: bool, rng) -> None:
    """Paints a tram: long, in two colors, low over the rails, with a current collector."""
    lower, upper = np.array(pick(rng, TRAMS), np.float64), np.array((238, 230, 208), np.float64)
    length, top = rng.uniform(20, 28), 3.45
    body = Body(canvas, x, z, 2.5, length, c.TRAIN, away)
    nose = 0.5
    body.hull([(0, 0.12), (0, 1.5), (length, 1.5), (length, 0.12)], lower)
    outline = [(0, 1.5), (nose, top), (length - nose, top), (length, 1.5)]
    body.hull(outline, upper)
    body.flank(rectangle(0.4, 1.62, length - 0.4, 2.8), (40, 44, 52))
    body.windows(0.6, length - 0.6, 1.72, 2.72, 12, mix(GLASS, canvas.haze, 0.35))
    for joint in (length * 0.36, length * 0.66):
        body.flank(rectangle(joint - 0.25, 0.15, joint + 0.25, top - 0.05), (70, 72, 76))
    for door in (length * 0.18, length * 0.5, length * 0.82):
        body.flank(rectangle(door, 0.25, door + 1.3, 2.75), lower * 1.35)
        body.flank(rectangle(door + 0.15, 1.3, door + 1.15, 2.65), mix(GLASS, canvas.haze, 0.35))
    body.flank(rectangle(0, 1.42, length, 1.58), (236, 196, 70))
    body.flank(rectangle(0, 0.12, length, 0.34), (52, 52, 56))
    end, slope = body.near, nose if away else -nose
    screen = (end, 1.5), (end + slope, top)
    body.across(between(*screen, 0.08), between(*screen, 0.68), -0.42, 0.42, GLASS)
    body.across(between(*screen, 0.74), between(*screen, 0.92), -0.3, 0.3, (255, 200, 90))
    body.near_end(-0.5, 1.36, 0.5, 1.52, (236, 196, 70))
    body.near_end(-0.5, 0.12, 0.5, 0.38, (52, 52, 56))
    body.near_end(-0.08, 1.02, 0.08, 1.26, (255, 250, 224))
    body.lamps(0.8, 0.12)
    for along in (length * 0.3, length * 0.3 + 1.1):  # the current collector
        body.across(
            (along, top), (length * 0.3 + 0.55, top + 0.8), -0.3, -0.24, (60, 60, 64), c.TRAIN
        )
        body.across(
            (along, top), (length * 0.3 + 0.55, top + 0.8), 0.24, 0.3, (60, 60, 64), c.TRAIN
        )
