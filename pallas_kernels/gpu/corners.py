"""The four pixels around a sampling point, among the flat rows of the value.

A *row* holds the channels of one pixel and one group (or head).
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer


class Plane(NamedTuple):
    """Says where the pixels of the sampled image lie among the rows of the value.

    Attributes:
      height: the height of the image.
      width: the width of the image.
      first: the row of pixel (0, 0), for every output row.
      step: the number of rows from one pixel to the next.
    """

    height: int
    width: int
    first: Integer[Array, " m"]
    step: int


class Points(NamedTuple):
    """Holds one sampling point of every output row.

    Attributes:
      x: the column of a whole pixel.
      y: the row of a whole pixel.
      fraction_x: how far the point is right of that pixel.
      fraction_y: how far the point is below that pixel.
      weight: the factor of the sample.
    """

    x: Integer[Array, " m"]
    y: Integer[Array, " m"]
    fraction_x: Float[Array, " m"]
    fraction_y: Float[Array, " m"]
    weight: Float[Array, " m"]


class Corner(NamedTuple):
    """Holds one of the four pixels around each sampling point.

    Attributes:
      row: the row of the value that holds the pixel, or any other row if the pixel is outside.
      inside: whether the pixel is in the image.
      weight: the bilinear weight of the pixel, 0 outside the image.
      slope_x: the derivative of `weight` with respect to x.
      slope_y: the derivative of `weight` with respect to y.
    """

    row: Integer[Array, " m"]
    inside: Bool[Array, " m"]
    weight: Float[Array, " m"]
    slope_x: Float[Array, " m"]
    slope_y: Float[Array, " m"]


def corners(plane: Plane, points: Points) -> Iterator[Corner]:
    """Yields the four pixels around the points, row by row."""
    fx, fy = points.fraction_x, points.fraction_y
    for y, weight_y, slope_y in ((points.y, 1 - fy, -1.0), (points.y + 1, fy, 1.0)):
        for x, weight_x, slope_x in ((points.x, 1 - fx, -1.0), (points.x + 1, fx, 1.0)):
            inside = (y >= 0) & (y < plane.height) & (x >= 0) & (x < plane.width)
            pixel = jnp.clip(y, 0, plane.height - 1) * plane.width
            pixel += jnp.clip(x, 0, plane.width - 1)
            yield Corner(
                plane.first + pixel * plane.step,
                inside,
                jnp.where(inside, weight_y * weight_x, 0.0),
                jnp.where(inside, slope_x * weight_y, 0.0),
                jnp.where(inside, slope_y * weight_x, 0.0),
            )
