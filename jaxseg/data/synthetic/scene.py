"""Renders one street scene: places things, paints them from far to near, and lights them."""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from jaxseg.data.synthetic import backdrop, houses, people, roadside, vehicles
from jaxseg.data.synthetic import canvas as c
from jaxseg.data.synthetic.canvas import Camera, Canvas, pick
from jaxseg.data.synthetic.plan import Street, plan_street


@dataclass(frozen=True)
class Weather:
    """Describes the weather, which sets the sky, the light and the haze.

    Attributes:
      zenith: the color of the sky overhead, in RGB.
      haze: the color of the sky at the horizon, in RGB.
      tint: the gain of the light per channel.
      visibility: in meters, as in `Canvas`.
      cloudiness: higher values give more clouds.
      sunny: whether houses cast shadows.
    """

    zenith: tuple
    haze: tuple
    tint: tuple
    visibility: float
    cloudiness: float
    sunny: bool


WEATHERS = (
    Weather((70, 128, 208), (190, 214, 236), (1.02, 1.0, 0.97), 300, 0.3, True),  # noon
    Weather((112, 156, 212), (216, 222, 234), (1.05, 1.0, 0.92), 260, 0.4, True),  # morning
    Weather((116, 130, 190), (236, 202, 200), (1.06, 0.96, 0.88), 260, 0.4, True),  # evening
    Weather((150, 164, 182), (200, 208, 216), (0.94, 0.96, 0.99), 200, 0.9, False),  # overcast
)


def render(rng: np.random.Generator, hw, feature: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders a scene.

    Args:
      hw: the (height, width) in pixels.
      feature: 0 guarantees a tram, 1 a bus and 2 a truck.

    Returns:
      The picture, uint8 [h, w, 3] in RGB, and the label, uint8 [h, w] of raw ids.
    """
    height, width = hw
    weather = pick(rng, WEATHERS)
    camera = Camera(
        focal=width * rng.uniform(0.78, 1.0),
        horizon=height * rng.uniform(0.36, 0.45),
        center=width * rng.uniform(0.4, 0.6),
        eye=rng.uniform(1.6, 2.6),
    )
    canvas = Canvas(hw, camera, weather.haze, weather.visibility)
    street = plan_street(feature == 0 or rng.random() < 0.12, rng)
    end = rng.uniform(60, 95)
    fronts = []
    for side in (-1, 1):
        setback = rng.uniform(14, 25) if street.park[side] else rng.uniform(0.2, 4.0)
        fronts += houses.plan_row(side, street.edge[side] + side * setback, end, rng)
    sun = pick(rng, (-1, 1)) if weather.sunny else 0

    backdrop.sky(canvas, weather.zenith, weather.cloudiness, rng)
    backdrop.street_end(canvas, end, rng)
    backdrop.ground(canvas, street.strips, street.marks(), _shadow(fronts, sun, rng), rng)
    for house in sorted(fronts, key=lambda house: -house.z):
        houses.paint_house(canvas, house, house.side != sun, rng)
    for side in (-1, 1):
        _paint_border(canvas, street.edge[side], street.park[side], rng)
        if rng.random() < 0.25:  # a railing between the road and the sidewalk
            at = canvas.first_visible(street.kerb[side]) + rng.uniform(0, 6)
            houses.paint_fence(canvas, street.kerb[side] + side * 0.2, at, at + 14, rng)
    # Nearer things are painted later. The distance of a thing is that of its near end.
    things = [*_traffic(canvas, street, feature, rng), *_roadside(canvas, street, rng)]
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    _ego_vehicle(canvas, rng)
    return _develop(canvas, weather, rng), canvas.label


def _shadow(fronts, sun: int, rng):
    """Returns the edge of the shadow that the houses on the sunny side cast on the ground."""
    if not sun:
        return None
    length = rng.uniform(0.35, 0.9)
    at, reach = [], []
    for house in fronts:
        if house.side == sun:
            tip = house.x - sun * house.height * length
            at += [house.z, house.z + 0.5, house.z + house.length, house.z + house.length + 0.5]
            reach += [house.x, tip, tip, house.x]
    order = np.argsort(at)
    return sun, np.array(at)[order], np.array(reach)[order]


def _paint_border(canvas: Canvas, edge: float, park: bool, rng) -> None:
    """Paints stretches of wall, fence or hedge with openings between them.

    A park has fewer of them.
    """
    stretches, z = [], canvas.first_visible(edge) * rng.uniform(0.7, 1)
    kinds = [houses.paint_fence, houses.paint_wall, None]
    kinds += [None] if park else [houses.paint_wall, roadside.hedge]
    while z < 50:
        length = rng.uniform(8, 18)
        stretches.append((z, z + length, pick(rng, kinds)))
        z += length + rng.uniform(0, 3)
    for near, far, paint in reversed(stretches):
        if paint is not None:
            paint(canvas, edge, near, far, rng)


def _traffic(canvas: Canvas, street: Street, feature: int, rng):
    """Yields vehicles and riders, as pairs (distance, function that paints the thing)."""
    start = 5.0 if street.crossing is None else street.crossing + 4.5
    wanted = {1: vehicles.bus, 2: vehicles.lorry}.get(feature)
    for index in rng.permutation(len(street.lanes)):
        middle, away = street.lanes[index]
        own = abs(middle) < 0.1
        z = start + rng.uniform(3, 9) + 5 * own
        while z < 40:
            if wanted is not None and not own:
                kind, wanted = wanted, None
            elif rng.random() < 0.4:
                kind = None
            else:
                kind = pick(rng, (vehicles.car,) * 5 + (vehicles.bus, vehicles.lorry))
            if kind is not None:
                x = middle + rng.uniform(-0.25, 0.25)
                yield z, partial(kind, canvas, x, z, away, rng)
            z += rng.uniform(10, 20)
    for side, middle in street.parking.items():
        for z in np.arange(canvas.first_visible(middle) * rng.uniform(0.7, 1.3), 42, 5.8):
            if rng.random() < 0.6 and not street.on_crossing(z, 5):
                yield z, partial(vehicles.car, canvas, middle, z, side == 1, rng)
    if street.rails is not None:
        z, away = rng.uniform(5, 13), bool(rng.integers(2))
        yield z, partial(vehicles.tram, canvas, street.rails, z, away, rng)
    sides = pick(rng, ((-1, 1), (1, -1)))
    for kind, side in zip((c.BICYCLE, c.MOTORCYCLE), sides, strict=True):
        if rng.random() < 0.85:
            x = street.road[side] - side * rng.uniform(0.6, 1.4)
            z = _ahead(canvas, x, 5, 11, rng)
            yield z, partial(people.rider, canvas, x, z, kind, rng)


def _roadside(canvas: Canvas, street: Street, rng):
    """Yields the things and people beside the road, in the form of `_traffic`."""
    for side in (-1, 1):
        kerb, verge, edge = street.kerb[side], street.verge[side], street.edge[side]
        x = kerb + side * 0.4
        for z in np.arange(_ahead(canvas, x, 5, 12, rng), 60, rng.uniform(16, 26)):
            yield z, partial(roadside.lamp_post, canvas, x, z, rng)
        if street.crossing is not None:
            z = street.crossing + 0.3
            yield z, partial(roadside.traffic_light, canvas, kerb + side * 0.5, z, rng)

        # They follow one another along the sidewalk, so that few hide each other.
        things = [
            *[people.person] * int(rng.integers(1, 4)),
            *[people.bicycle] * int(rng.integers(0, 3)),
            *[people.motorcycle] * int(rng.integers(0, 2)),
            *[roadside.traffic_sign] * int(rng.integers(1, 3)),
            *[roadside.traffic_light] * int(rng.integers(0, 2)),
            *[roadside.bin_or_box] * int(rng.random() < 0.3),
        ]
        z = max(canvas.first_visible(kerb + side), 5.0)
        for index in rng.permutation(len(things)):
            z += rng.uniform(1.0, 2.0)
            inwards = rng.uniform(0.6, abs(verge - kerb)) if things[index] is people.person else 0.7
            x = kerb + side * (inwards + rng.uniform(-0.2, 0.2))
            yield z, partial(things[index], canvas, x, z, rng)

        if abs(edge - verge) > 1:
            middle = (verge + edge) / 2
            first = _ahead(canvas, middle, 5, 12, rng)
            for z in np.arange(first * 0.8, 50, rng.uniform(7, 13)):
                x = middle + rng.uniform(-0.4, 0.4)
                yield z, partial(roadside.tree, canvas, x, z, rng)
        for _ in range(6 * street.park[side]):
            x = edge + side * rng.uniform(1.5, 13)
            z = _ahead(canvas, x, 10, 45, rng)
            yield z, partial(roadside.tree, canvas, x, z, rng)
    if street.crossing is not None:
        for _ in range(rng.integers(1, 4)):
            x, z = rng.uniform(street.road[-1], street.road[1]), street.crossing + rng.uniform(0, 3)
            yield z, partial(people.person, canvas, x, z, rng)


def _ahead(canvas: Canvas, x: float, nearest: float, farthest: float, rng) -> float:
    """Draws a distance at which a thing at `x` is in the picture."""
    visible = max(nearest, canvas.first_visible(x) * 1.08)
    return visible + rng.random() * max(farthest - visible, 4)


def _ego_vehicle(canvas: Canvas, rng) -> None:
    """Paints the hood of the car with the camera, and the frame that rectification leaves."""
    height, width = canvas.label.shape
    if rng.random() < 0.85:
        color = np.array(pick(rng, ((44, 46, 52), (70, 76, 88), (92, 30, 34), (150, 152, 156))))
        center = (int(canvas.camera.center * 0.3 + width * 0.35), height)
        rise = height * rng.uniform(0.03, 0.09)
        for share, tone, label in ((1, 1, c.EGO), (0.82, 1.25, None), (0.5, 1.45, None)):
            axes = (int(width * 0.55 * share**0.5), int(rise * share))
            fill = np.clip(color * tone, 0, 255).tolist()
            cv2.ellipse(canvas.image, center, axes, 0, 180, 360, fill, -1, cv2.LINE_AA)
            if label is not None:
                cv2.ellipse(canvas.label, center, axes, 0, 180, 360, label, -1)
    if rng.random() < 0.5:
        frame = max(height // 100, 1)
        for part in (np.s_[:frame], np.s_[-frame:], np.s_[:, :frame], np.s_[:, -frame:]):
            canvas.label[part] = c.BORDER


# How uneven the surface of each label is: the relative standard deviation of its brightness.
ROUGHNESS = np.full(256, 0.02, np.float32)
ROUGHNESS[[c.VEGETATION, c.TERRAIN, c.WALL, c.BUILDING]] = (0.10, 0.08, 0.05, 0.03)
ROUGHNESS[[c.SKY, c.EGO]] = 0.004


def _develop(canvas: Canvas, weather: Weather, rng) -> np.ndarray:
    """Applies surface grain, the color of the light, exposure, lens and sensor to the picture."""
    height, width = canvas.label.shape
    grain = rng.standard_normal((height, width), np.float32)
    light = 1 + cv2.GaussianBlur(grain, (3, 3), 0.6) * 1.5 * ROUGHNESS[canvas.label]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None] ** 2
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    light *= 1 - rng.uniform(0.02, 0.12) * (across + down)
    exposure = np.float32(rng.uniform(0.92, 1.1) * np.array(weather.tint))
    picture = canvas.image * (light[..., None] * exposure)
    picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.3, 0.6))
    picture += (grain * np.float32(rng.uniform(0.8, 2.2)))[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)
