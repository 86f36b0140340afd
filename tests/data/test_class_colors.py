"""Colors of a user's own classes: people can tell them apart, and from the marks of errors."""

import numpy as np
import pytest

from jaxseg.data.datasets.class_colors import as_seen, class_colors
from jaxseg.reporting.visualize import IGNORED, WRONG


def distances(first, second):
    """In CIELAB, for normal vision and for three kinds without a kind of cones."""
    first, second = (as_seen(np.array(colors, int).reshape(-1, 3)) for colors in (first, second))
    return np.linalg.norm(first[:, :, None] - second[:, None], axis=-1)


@pytest.mark.parametrize("count", [2, 8, 11, 12])
def test_up_to_a_dozen_classes_differ_for_everybody(count):
    apart = distances(class_colors(count, {}), class_colors(count, {}))
    assert apart[:, ~np.eye(count, dtype=bool)].min() > 15  # 2.3 can just be seen


@pytest.mark.parametrize("count", [12, 150, 254])
def test_no_color_is_near_the_marks_of_errors(count):
    colors = class_colors(count, {})
    if count < 200:
        assert len({tuple(color) for color in colors.tolist()}) == count
    normal = distances(colors, [WRONG, IGNORED])[0]
    assert normal[:, 0].min() > 55
    assert normal[:, 1].min() > 20


def test_given_colors_are_kept_and_avoided():
    given = {1: (0, 0, 255), 3: (10, 200, 10)}
    colors = class_colors(5, given)
    assert [tuple(colors[k].tolist()) for k in given] == list(given.values())
    rest = colors[[0, 2, 4]]
    assert distances(rest, list(given.values())).min() > 15
