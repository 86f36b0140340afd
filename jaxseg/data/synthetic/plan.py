"""Plans a street: what lies and stands where, before anything is painted."""

from dataclasses import dataclass

import numpy as np

from jaxseg.data.synthetic import canvas as c
from jaxseg.data.synthetic.backdrop import Strip
from jaxseg.data.synthetic.canvas import pick

LANE = 3.3  # width in meters


@dataclass
class Street:
    """Holds the layout of a street.

    Positions across the street are in meters from the camera. Sides are -1 (left) and 1 (right).
    """

    lanes: list[tuple[float, bool]]  # (middle, whether it leads away from the camera)
    road: dict[int, float]  # side -> where the lanes end
    parking: dict[int, float]  # side -> middle of the parking strip, for sides that have one
    rails: float | None  # middle of the tram track
    kerb: dict[int, float]  # side -> where the sidewalk begins
    verge: dict[int, float]  # side -> where the sidewalk ends and grass begins
    edge: dict[int, float]  # side -> where walls and fences stand
    park: dict[int, bool]  # side -> whether there is a park, with the houses behind it
    strips: list[Strip]  # of the ground, from left to right
    crossing: float | None  # how far ahead a zebra crossing is

    def on_crossing(self, z: float, length: float) -> bool:
        """Returns whether a vehicle from `z` to `z + length` would stand on the zebra crossing."""
        near = self.crossing
        return near is not None and bool(z < near + 4 and z + length > near - 0.5)

    def marks(self) -> list[tuple[str, float, float]]:
        """Returns the lines between the lanes and along the edges, and the zebra crossing."""
        middles = sorted(middle for middle, _ in self.lanes)
        marks = [("dashed", middle + LANE / 2, 0.0) for middle in middles[:-1]]
        marks += [("solid", self.road[side] - side * 0.25, 0.0) for side in (-1, 1)]
        return marks if self.crossing is None else [*marks, ("zebra", 0.0, self.crossing)]


def plan_street(tram: bool, rng) -> Street:
    """Plans the lanes for both directions, and the strips of ground on either side.

    Every side has a sidewalk and grass. A side may also have parking or rails.
    """
    count = {side: 1 if rng.random() < 0.6 else 2 for side in (-1, 1)}
    own = (int(rng.integers(count[1])) + 0.5) * LANE  # the camera drives in the middle of a lane
    lanes = [
        (side * (index + 0.5) * LANE - own, side == 1)
        for side in (-1, 1)
        for index in range(count[side])
    ]
    asphalt = np.array((92, 92, 98)) * rng.uniform(0.9, 1.1)
    paving = np.array(pick(rng, ((198, 184, 168), (190, 166, 148), (204, 192, 178))))
    grass = np.array(pick(rng, ((136, 164, 90), (146, 168, 100), (154, 164, 108))))
    rails_side = pick(rng, (-1, 1)) if tram else 0
    road, parking, kerb, verge, edge, park, rails, strips = {}, {}, {}, {}, {}, {}, None, []
    for side in (-1, 1):
        at = road[side] = side * count[side] * LANE - own
        bands = []  # (width, label, color), from the road outwards

        def reach(bands=bands, at=at, side=side):
            return at + side * sum(width for width, *_ in bands)

        if rng.random() < 0.4:
            parking[side] = reach() + side * 1.15
            label = pick(rng, (c.PARKING, c.ROAD, c.ROAD))
            bands.append((2.3, label, asphalt * (1.0 if label == c.ROAD else 1.12)))
        if side == rails_side:
            rails = reach() + side * 1.8
            bands.append((3.6, c.RAILS, (128, 116, 104)))
        kerb[side] = reach()
        bands.append((rng.uniform(2.2, 3.6), c.SIDEWALK, paving))
        verge[side] = reach()
        bands.append((rng.uniform(1.5, 4.0) if rng.random() < 0.8 else 0.3, c.TERRAIN, grass))
        edge[side] = reach()
        park[side] = rng.random() < 0.35
        paved = not park[side] and rng.random() < 0.4
        ground = (c.SIDEWALK, paving * 0.95) if paved else (c.TERRAIN, grass * 0.92)
        bands.append((90, *ground))
        for width, label, color in bands:
            outer = at + side * width
            strips.append(Strip(min(at, outer), max(at, outer), label, tuple(color)))
            at = outer
    strips.append(Strip(road[-1], road[1], c.ROAD, tuple(asphalt)))
    strips.sort(key=lambda strip: strip.left)
    crossing = rng.uniform(7, 13) if rng.random() < 0.4 else None
    return Street(lanes, road, parking, rails, kerb, verge, edge, park, strips, crossing)
