"""Draws curves as SVG: one chart per quantity, one line per run.

Colors come from the page's style sheet, so that a chart follows the light or the dark scheme. A
value that is not finite leaves a gap.
"""

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxseg.report.markup import Child, element
from jaxseg.report.records import Curve

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 34  # margins of the plot
POINTS = 400  # a longer curve is drawn as means of neighbors
MARKED = 40  # a curve of up to so many points has a mark at each of them
COLORS = 8  # of the style sheet; more runs have the same colors, dashed
LOGARITHMIC = 30  # ratio of largest and smallest value from which a scale may be logarithmic


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What a chart shows.

    Attributes:
      key: the name in the log.
      title: the title of the chart.
      scale: "linear", "log" if the values span more than a factor of 30, or "robust": linear and
        without the values far above the others, such as the step that compiles.
      percent: whether the values are shares, to be shown in percent.
    """

    key: str
    title: str
    scale: str = "linear"
    percent: bool = False


QUANTITIES = (
    Quantity("mIoU", "mIoU, %", percent=True),
    Quantity("loss", "loss", "log"),
    Quantity("decode_loss", "decode loss", "log"),
    Quantity("auxiliary_loss", "auxiliary loss, weighted", "log"),
    Quantity("loss_cls", "Mask2Former, classes: loss_cls", "log"),
    Quantity("loss_mask", "Mask2Former, masks: loss_mask", "log"),
    Quantity("loss_dice", "Mask2Former, Dice: loss_dice", "log"),
    Quantity("learning_rate", "learning rate"),
    Quantity("gradient_norm", "gradient norm", "log"),
    Quantity("step_seconds", "seconds per step", "robust"),
    Quantity("images_per_second", "images per second"),
)


def run_class(index: int) -> str:
    """Returns the class of the style sheet that gives a run its color."""
    return f"run{index % COLORS}" + (" dashed" if index >= COLORS else "")


def line_chart(
    quantity: Quantity,
    curves: Sequence[tuple[int, str, Curve]],
    reference: tuple[str, float] | None = None,
    last_step: int = 0,
) -> ET.Element:
    """Draws a chart with one line per run.

    Args:
      quantity: what is shown.
      curves: the number of the run, its name and its curve. At least one has a finite value.
      reference: name and value of a horizontal line, such as a published score.
      last_step: the step that the axis reaches at least, so that charts can be compared.
    """
    factor = 100 if quantity.percent else 1
    scaled = [(number, name, c.steps, factor * c.values) for number, name, c in curves]
    values = np.concatenate([v[np.isfinite(v)] for *_, v in scaled])
    if reference:
        reference = reference[0], factor * reference[1]
        values = np.append(values, reference[1])
    log = quantity.scale == "log" and _spans_decades(values)
    last_step = max(last_step, *(int(steps[-1]) for *_, steps, _ in scaled))
    x = _Axis(0, last_step, LEFT, WIDTH - RIGHT)
    y = _Axis(*_value_range(quantity, values, log), HEIGHT - BOTTOM, TOP, log)
    parts: list[Child] = [_grid(x, y)]
    if reference:
        parts.append(_reference_line(y(reference[1]), f"{reference[0]} {reference[1]:.2f}"))
    averaged = 1
    for number, name, steps, own in scaled:
        group = math.ceil(len(steps) / POINTS)
        averaged = max(averaged, group)
        steps, own = _means(steps, own, group)
        parts.append(_line(x, y, number, name, steps, own))
    title = quantity.title
    notes = ["logarithmic"] * log
    notes += [f"means of {averaged} values"] * (averaged > 1)
    notes += ["higher values are cut off"] * bool(values.max() > y.high)
    caption = element(
        "figcaption", element("b", title), [f" ({', '.join(notes)})"] if notes else []
    )
    box = element(
        "svg",
        parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title} over the steps of {', '.join(name for _, name, *_ in scaled)}",
    )
    return element("figure", caption, box, class_="chart")


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Maps values from `low` to `high` to coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value):
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Returns about `count` round numbers from `low` to `high`.

    >>> nice_ticks(0, 120)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0]
    """
    if not high > low:
        return [float(low)]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten from `low` to `high`, with twice and five times them if they are few.

    >>> log_ticks(0.3, 40)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 5 else (1, 2, 5)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _spans_decades(values):
    return bool(values.min() > 0 and values.max() > LOGARITHMIC * values.min())


def _value_range(quantity, values, log):
    """Returns the lowest and the highest value of the axis."""
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.1, high * 1.1
    if quantity.scale == "robust":
        high = min(high, 3 * float(np.median(values)))
    low = min(low, 0.0)
    return low, high + 0.05 * (high - low) or low + 1.0


def _means(
    steps: np.ndarray, values: Float[np.ndarray, " n"], group: int
) -> tuple[np.ndarray, np.ndarray]:
    """Averages groups of neighbors. A group without a finite value stays a gap."""
    if group == 1:
        return steps, values
    starts = np.arange(0, len(values), group)
    finite = np.isfinite(values)
    count = np.add.reduceat(finite.astype(np.float64), starts)
    total = np.add.reduceat(np.where(finite, values, 0.0), starts)
    means = np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
    return np.append(steps[starts[1:] - 1], steps[-1]), means


def _grid(x, y):
    """Draws the lines and the labels of both axes."""
    parts = []
    for tick in log_ticks(y.low, y.high) if y.log else nice_ticks(y.low, y.high):
        at = y(tick)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(_text(_number(tick), LEFT - 6, at + 4, "end"))
    for tick in nice_ticks(x.low, x.high):
        parts.append(_text(_number(tick), x(tick), HEIGHT - BOTTOM + 16, "middle"))
    parts.append(_text("step", WIDTH - RIGHT, HEIGHT - 4, "end"))
    return parts


def _number(value):
    """Writes a number of an axis: 160k, 0.002, 5e-06."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _text(text, x, y, anchor, **attributes):
    return element("text", text, x=x, y=y, text_anchor=anchor, **attributes)


def _reference_line(at, label):
    return [
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="reference"),
        _text(label, WIDTH - RIGHT - 2, at + 13 if at < TOP + 16 else at - 5, "end"),
    ]


def _line(x, y, number, name, steps, values):
    """Draws one curve, broken at gaps; values above the axis end at its top."""
    path, marks, pen_down = [], [], False
    alone = np.convolve(np.isfinite(values), [1, 1, 1], "same") == 1  # no neighbor to be joined to
    for index, (step, value) in enumerate(zip(steps.tolist(), values.tolist(), strict=True)):
        if not math.isfinite(value):
            pen_down = False
            continue
        at = x(step), y(min(value, y.high))
        path.append(f"{'L' if pen_down else 'M'}{at[0]:g} {at[1]:g}")
        pen_down = True
        if len(values) <= MARKED or alone[index]:
            tip = element("title", f"{name}, step {step}: {value:.6g}")
            marks.append(element("circle", tip, cx=at[0], cy=at[1], r=3))
    return element("g", element("path", d="".join(path)), marks, class_=run_class(number))
