"""Paints houses, walls and fences: the long upright surfaces along the street."""

from dataclasses import dataclass

import numpy as np

from jaxseg.data.synthetic import canvas as c
from jaxseg.data.synthetic.backdrop import FACADES
from jaxseg.data.synthetic.canvas import Canvas, mix, pick


@dataclass(frozen=True)
class House:
    """Describes a house beside the street.

    Attributes:
      side: -1 for the left, 1 for the right.
      x: the position of its front across the street, in meters.
      z: the distance of its near end, in meters.
      length: it stands from z to z + length, in meters.
      height: the height of its eaves, in meters.
      color: of its front, RGB.
      free_end: whether the end toward the camera can be seen.
    """

    side: int
    x: float
    z: float
    length: float
    height: float
    color: tuple
    free_end: bool


def plan_row(side: int, x: float, far: float, rng) -> list[House]:
    """Plans a row of houses from behind the camera to `far`, some with a gap between them."""
    houses, z = [], rng.uniform(-6, 0)
    low = rng.random() < 0.4
    gap, last_height = 1.0, 0.0
    while z < far:
        length = rng.uniform(7, 15)
        height = rng.uniform(5.5, 8.5) if low else rng.uniform(8.5, 17)
        free_end = gap > 0 or height > last_height
        houses.append(House(side, x, z, length, height, pick(rng, FACADES), free_end))
        gap = rng.uniform(2, 8) if rng.random() < (0.7 if low else 0.3) else 0
        last_height = height
        z += length + gap
    return houses


def paint_house(canvas: Canvas, house: House, sunlit: bool, rng) -> None:
    """Paints a house's front and, if it is visible, the end that faces the camera."""
    near, far = max(house.z, 1.5), house.z + house.length
    color, visible = np.asarray(house.color, np.float64), canvas.first_visible(house.x)
    density = np.clip(canvas.camera.focal / max(near, visible), 3, 11)
    if near < visible and far < visible:
        return
    if house.free_end and house.z > visible / 2:
        depth = 9.0
        end = _facade(depth, house.height, density, color * (0.95 if sunlit else 0.82), rng, False)
        outer = house.x + house.side * depth
        left, right = min(house.x, outer), max(house.x, outer)
        canvas.texture(_upright(left, near, right, near, 0, house.height), end, c.BUILDING)
        if house.height < 9:
            roof = (150, 78, 62) if color.mean() > 150 else (96, 84, 84)
            peak = ((left + right) / 2, house.height + 2.2, near)
            eaves = [(left - 0.4, house.height, near), (right + 0.4, house.height, near)]
            canvas.polygon([*eaves, peak], roof, c.BUILDING)
    shade = 1.0 if sunlit else 0.78
    front = _facade(far - near, house.height, density, color * shade, rng, True)
    # The far end of a left house is on the right in the picture, that of a right house on the left.
    ends = (near, far) if house.side < 0 else (far, near)
    canvas.texture(_upright(house.x, ends[0], house.x, ends[1], 0, house.height), front, c.BUILDING)


def _facade(width, height, density, color, rng, shops: bool) -> np.ndarray:
    """Returns a picture of a house front with windows, uint8, `density` pixels per meter."""
    down = np.arange(int(height * density) + 1)[:, None] / density  # meters below the eaves
    along = np.arange(int(width * density) + 1)[None] / density
    spacing, half = rng.uniform(2.0, 3.0), rng.uniform(0.45, 0.7)
    glass, frame = mix((58, 72, 92), (130, 150, 170), rng.random() * 0.6), mix(color, 245, 0.6)
    accent = pick(rng, ((170, 52, 48), (38, 92, 80), (46, 66, 120), (196, 140, 50), (90, 60, 90)))
    # Every pixel gets a number; at the end, the palette turns the numbers into colors.
    palette = np.array(
        [
            *(color, color * 0.9, frame, accent, color * 0.7, mix(color, 255, 0.35)),
            *(glass * 0.75, glass * 0.9, glass, glass * 1.2, mix(accent, 30, 0.4), (240, 212, 150)),
        ]
    )
    plain, course, trim, sign, plinth, eaves, panes, door = 0, 1, 2, 3, 4, 5, (6, 7, 8, 9, 11), 10
    picture = np.full((down.shape[0], along.shape[1]), plain, np.uint8)
    if rng.random() < 0.3:
        picture[:: max(int(density * 0.5), 2)] = course

    upper = (down > 0.7) & (down < height - 3.9)
    storey, in_storey = np.divmod(down - 0.9, 3.0)
    bay, in_bay = np.divmod(along, spacing)
    off_center = np.abs(in_bay - spacing / 2)
    tones = rng.choice(
        panes, (int(storey.max()) + 2, int(bay.max()) + 1), p=(0.2, 0.2, 0.3, 0.2, 0.1)
    )
    tones = tones.astype(np.uint8)[storey.astype(int), bay.astype(int)]
    opening = upper & (in_storey < 1.9) & (off_center < half + 0.14)
    picture[opening] = trim
    opening &= (in_storey > 0.14) & (in_storey < 1.76) & (off_center < half)
    opening &= np.abs(in_storey - 0.9) > 0.05
    picture[opening] = tones[opening]

    if shops:
        top = height - 3.4
        shop, in_shop = np.divmod(along, 3.4)
        is_door = (rng.random(int(shop.max()) + 1) < 0.3)[shop.astype(int)]
        off_center = np.abs(in_shop - 1.7)
        wide = np.where(is_door, 0.55, 1.35)
        sill = np.where(is_door, 0.1, 0.6)
        opening = (down > top + 0.95) & (down < height - 0.1) & (off_center < wide + 0.1)
        picture[opening] = trim
        opening &= (down > top + 1.05) & (down < height - sill) & (off_center < wide)
        fill = np.broadcast_to(np.where(is_door, door, tones[-1:]), picture.shape)
        picture[opening] = fill[opening]
        picture[((down > top + 0.4) & (down < top + 0.9))[:, 0]] = sign
    picture[(down < 0.35)[:, 0]] = eaves
    picture[(down > height - 0.3)[:, 0]] = plinth
    return np.clip(palette, 0, 255).astype(np.uint8)[picture]


def paint_wall(canvas: Canvas, x, near, far, rng) -> None:
    """Paints a garden wall or a retaining wall of stone along the street."""
    near, height = max(near, canvas.first_visible(x) * 0.9), rng.uniform(1.9, 3.2)
    if near >= far:
        return
    density = np.clip(canvas.camera.focal / near, 4, 20)
    h, w = int(height * density) + 1, int((far - near) * density) + 1
    stone = np.array(pick(rng, ((122, 120, 148), (138, 126, 156), (108, 110, 140))), np.float32)
    course, block = pick(rng, ((0.3, 0.6), (0.5, 0.9)))
    rows = np.arange(h)[:, None] / density
    columns = np.arange(w)[None] / density
    row_index = (rows // course).astype(int)
    blocks = ((columns + (row_index % 2) * block / 2) // block).astype(int)
    tone = rng.uniform(0.8, 1.15, 97).astype(np.float32)
    picture = stone * tone[(row_index * 31 + blocks * 7) % 97][..., None]
    joint = (rows % course < 0.07) | ((columns + (row_index % 2) * block / 2) % block < 0.07)
    picture[joint] *= 0.72
    picture[: max(int(0.2 * density), 1)] = stone * 1.25  # the coping
    ends = (near, far) if x < 0 else (far, near)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    canvas.texture(_upright(x, ends[0], x, ends[1], 0, height), picture, c.WALL)


def paint_fence(canvas: Canvas, x, near, far, rng) -> None:
    """Paints a fence of pickets or bars with rails.

    It can be seen through, but all of it is labeled as fence.
    """
    near, height = max(near, canvas.first_visible(x) * 0.9), rng.uniform(1.4, 2.1)
    if near >= far:
        return
    density = np.clip(canvas.camera.focal / near, 5, 20)
    h, w = int(height * density) + 1, int((far - near) * density) + 1
    pickets = rng.random() < 0.5
    spacing, bar = (0.34, 0.24) if pickets else (0.34, 0.16)
    color = pick(rng, ((240, 240, 236), (228, 234, 240), (206, 216, 228), (190, 204, 220)))
    rows = np.arange(h)[:, None] / density
    columns = np.arange(w)[None] / density
    solid = (columns % spacing < bar) | (columns % 2.6 < 0.24)
    for rail in (0.18 if pickets else 0.0, height * 0.72):
        solid = solid | ((rows >= rail) & (rows < rail + 0.14))
    picture = np.empty((h, w, 4), np.uint8)
    picture[..., :3] = color
    picture[..., 3] = np.where(solid, 255, 60)
    ends = (near, far) if x < 0 else (far, near)
    canvas.texture(_upright(x, ends[0], x, ends[1], 0, height), picture, c.FENCE)


def _upright(x0, z0, x1, z1, bottom, top):
    """Returns the corners of an upright rectangle.

    It stands from (x0, z0) on the left to (x1, z1) on the right.
    """
    return [(x0, top, z0), (x1, top, z1), (x1, bottom, z1), (x0, bottom, z0)]
