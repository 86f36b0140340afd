"""Curves are drawn with gaps and round ticks; large logs as means."""

import numpy as np
import pytest

from jaxseg.report.charts import Quantity, line_chart, log_ticks, nice_ticks, run_class
from jaxseg.report.records import Curve

LOSS = Quantity("loss", "loss", "log")


def draw(values, quantity=LOSS, **others):
    steps = np.arange(1, len(values) + 1, dtype=np.int64)
    curve = Curve(steps, np.array(values, np.float64))
    return line_chart(quantity, [(0, "run", curve)], **others)


def texts(chart):
    return ["".join(text.itertext()) for text in chart.iter("text")]


def path(chart):
    (line,) = chart.iter("path")
    return line.get("d")


def test_a_value_that_is_not_finite_leaves_a_gap():
    assert path(draw([1, 2, 3, 4])).count("M") == 1
    assert path(draw([1, 2, np.nan, 3, 4])).count("M") == 2


def test_points_are_at_their_values():
    # The axis goes from 0 to 105 % of the largest value, and the steps from 0 to the last.
    assert path(draw([0, 100, 50], Quantity("x", "x"))).split("L") == [
        "M190 216",
        "328 19.81",
        "466 117.9",
    ]


def test_a_point_between_gaps_has_a_mark():
    values = np.full(100, np.nan)
    values[[10, 20, 21]] = 1
    assert len(list(draw(values).iter("circle"))) == 1


def test_a_scale_is_logarithmic_where_values_span_decades():
    assert "logarithmic" in "".join(draw([1000, 10, 1]).itertext())
    assert "logarithmic" not in "".join(draw([3, 2, 1]).itertext())
    assert "logarithmic" not in "".join(draw([1000, 10, 0]).itertext())


def test_a_long_curve_is_drawn_as_means():
    chart = draw(np.tile([1.0, 3.0], 1000), Quantity("x", "x"))
    assert "means of 5 values" in "".join(chart.itertext())
    assert path(chart).count("L") == 399


def test_the_step_that_compiles_is_cut_off():
    chart = draw([100, 1, 1, 1], Quantity("x", "x", "robust"))
    assert "higher values are cut off" in "".join(chart.itertext())
    assert texts(chart)[0:3] == ["0", "1", "2"]


def test_a_published_score_is_a_line():
    chart = draw([0.1, 0.2], Quantity("mIoU", "mIoU", percent=True), reference=("published", 0.825))
    assert "published 82.50" in texts(chart)
    assert [line.get("class") for line in chart.iter("line")].count("reference") == 1


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [5.0], [-1.0, -1.0], [1e-300, 1e300]])
def test_values_without_a_range_are_drawn(values):
    assert path(draw(values)).startswith("M")


def test_ticks_are_round():
    assert nice_ticks(0, 160_000) == [0, 50_000, 100_000, 150_000]
    assert nice_ticks(3, 3) == [3]
    assert log_ticks(0.01, 1e6) == [10.0**power for power in range(-2, 7)]


def test_the_ninth_run_is_dashed():
    assert run_class(0) == "run0"
    assert run_class(8) == "run0 dashed"
