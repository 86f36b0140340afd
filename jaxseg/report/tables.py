"""Makes the tables of the page: scores, classes, settings, versions and devices."""

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from jaxseg.report.charts import run_class
from jaxseg.report.comparison import Compared, Score, config_differences
from jaxseg.report.confusion import Confusion
from jaxseg.report.markup import element
from jaxseg.report.run import Run
from jaxseg.zoo.weights import Model

NOTHING = "-"
MINUS = "\N{MINUS SIGN}"
LONGEST = 400  # characters of a setting
ALWAYS_DIFFERENT = ("started", "command")  # facts whose difference says nothing


def run_label(number: int, name: str) -> ET.Element:
    """Returns the name of a run beside its color."""
    swatch = element("i", class_=f"swatch {run_class(number)}")
    return element("span", swatch, name, class_="run")


def summary_table(compared: Sequence[Compared], published: Model | None) -> ET.Element:
    """Returns a table with one row per run: the scores of its last evaluation.

    Args:
      compared: the runs with their scores.
      published: a published model to compare with, or None.
    """
    first = next((row.run.name for row in compared if row.miou), "first")
    head = ["run", "step", "images", "mIoU", f"difference to {first}", "best mIoU", "mAcc", "aAcc"]
    if published:
        head += ["published ss / ms", "difference to published ss"]
    rows = []
    for number, row in enumerate(compared):
        evaluation = row.run.evaluation
        means = evaluation.means if evaluation else {}
        step = evaluation.step if evaluation else None
        counts = evaluation.counts if evaluation else None
        cells = [
            run_label(number, row.run.name),
            NOTHING if step is None else f"{step:,}",
            NOTHING if counts is None else f"{len(counts.images):,}",
            score_cell(row.miou, aligned=True),
            difference_cell(row.miou_difference, aligned=True),
            _best(row.run),
            percent(means.get("mAcc", math.nan)),
            percent(means.get("aAcc", math.nan)),
        ]
        if published:
            cells += [_published(published), _difference_to(published, row.miou)]
        rows.append(cells)
    return _table(head, rows, "numbers")


def _best(run):
    """Returns the best logged mIoU and its step."""
    curve = run.curves.get("mIoU")
    if curve is None or not any(map(math.isfinite, curve.values.tolist())):
        return NOTHING
    best = max(
        (value, -step)
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        if math.isfinite(value)
    )
    return [percent(best[0]), element("small", f" at step {-best[1]:,}")]


def _published(model):
    return " / ".join(
        NOTHING if score is None else f"{score:.2f}" for score in (model.miou_ss, model.miou_ms)
    )


def _difference_to(model, miou):
    if model.miou_ss is None or miou is None or math.isnan(miou.value):
        return NOTHING
    return signed(miou.value - model.miou_ss / 100)


def class_table(compared: Sequence[Compared]) -> ET.Element | None:
    """Returns the IoU of every class in every run, with the differences to the first run.

    A class that only some of the runs have is empty in the others. None if no run has classes.
    """
    names = list(dict.fromkeys(name for row in compared for name in row.iou))
    if not names:
        return None
    pixels: dict[str, int] = {}
    for row in compared:
        found = row.run.evaluation
        if found is not None and found.pixels is not None and not pixels:
            pixels = dict(zip(found.classes, found.pixels.tolist(), strict=True))
    total = sum(pixels.values())
    scored = [(number, row) for number, row in enumerate(compared) if row.iou]
    differing = [(number, row) for number, row in scored if row.iou_difference]
    head: list = ["class"] + ["pixels"] * bool(total)
    head += [["IoU ", run_label(number, row.run.name)] for number, row in scored]
    head += [["difference of ", run_label(number, row.run.name)] for number, row in differing]
    rows = []
    for name in names:
        cells: list = [name]
        cells += [_share(pixels.get(name, 0), total)] * bool(total)
        cells += [score_cell(row.iou.get(name)) for _, row in scored]
        cells += [difference_cell(row.iou_difference.get(name)) for _, row in differing]
        rows.append(cells)
    return _table(head, rows, "numbers", sortable=True)


def _share(pixels, total):
    return element("td", f"{pixels / total:.2%}" if pixels else "none", data_value=str(pixels))


def score_cell(score: Score | None, aligned: bool = False) -> ET.Element:
    """Returns a table cell with a score in percent and its interval.

    Args:
      score: the score, or None.
      aligned: whether an interval that is missing leaves its place empty.
    """
    if score is None:
        return element("td", NOTHING)
    if math.isnan(score.value):
        return element("td", "absent", class_="faint")
    interval = _interval(score, percent, aligned)
    return element("td", percent(score.value), interval, data_value=repr(score.value))


def difference_cell(score: Score | None, aligned: bool = False) -> ET.Element:
    """Returns a table cell with a difference in percent points, marked if it excludes zero.

    Arguments are those of `score_cell`.
    """
    if score is None or math.isnan(score.value):
        return element("td", NOTHING)
    sign = None
    if score.excludes_zero:
        sign = "better" if score.low > 0 else "worse"
    arrow = {"better": "▲ ", "worse": "▼ "}.get(sign or "", "")
    value = element("span", arrow, signed(score.value), class_=sign)
    return element("td", value, _interval(score, signed, aligned), data_value=repr(score.value))


def _interval(score, write, aligned):
    if math.isnan(score.low):
        return element("small") if aligned else None
    return element("small", f" [{write(score.low)}, {write(score.high)}]")


def percent(value: float) -> str:
    """Writes a share in percent with two digits, or a dash for NaN."""
    return NOTHING if math.isnan(value) else f"{100 * value:.2f}"


def signed(value: float) -> str:
    """Writes a difference of shares in percent points, with its sign."""
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def confusions_table(confusions: Sequence[Confusion]) -> ET.Element:
    """Returns a table of confusions: label, prediction, share and pixels."""
    rows = [
        [found.label, found.prediction, f"{found.share:.1%}", f"{found.pixels:,}"]
        for found in confusions
    ]
    return _table(["label", "predicted as", "of the label", "pixels"], rows, "confusions")


def config_table(runs: Sequence[Run]) -> ET.Element | None:
    """Returns the settings that differ between runs, or None if there are none."""
    known = [(number, run) for number, run in enumerate(runs) if run.config]
    rows = [
        [element("code", key), *(setting(value) for value in values)]
        for key, values in config_differences(runs).items()
    ]
    if not rows:
        return None
    head = ["setting", *(run_label(number, run.name) for number, run in known)]
    return _table(head, rows, "texts")


def setting(value: object) -> ET.Element:
    """Returns a table cell with a setting as JSON; `...` is a setting that a run lacks."""
    if value is ...:
        return element("td", NOTHING)
    text = json.dumps(value, ensure_ascii=False)
    return element("td", element("code", text[:LONGEST] + "…" * (len(text) > LONGEST)))


def config_list(config: Mapping[str, object]) -> ET.Element:
    """Returns all settings of a run."""
    rows = [[element("code", key), setting(value)] for key, value in sorted(config.items())]
    return _table(["setting", "value"], rows, "texts")


def facts_table(runs: Sequence[Run]) -> ET.Element | None:
    """Returns versions, devices and the like of all runs. Rows that differ are marked."""
    known = [(number, run) for number, run in enumerate(runs) if run.facts]
    if not known:
        return None
    keys = list(dict.fromkeys(key for _, run in known for key in run.facts))
    rows = []
    for key in keys:
        facts = [run.facts.get(key) for _, run in known]
        same = key in ALWAYS_DIFFERENT or all(fact == facts[0] for fact in facts)
        cells = [element("td", fact or NOTHING) for fact in facts]
        rows.append(element("tr", element("th", key, scope="row"), cells, class_=_changed(same)))
    head = ["", *(run_label(number, run.name) for number, run in known)]
    return _table(head, rows, "texts")


def _changed(same):
    return None if same else "differs"


def _table(head, rows, kind, sortable=False):
    """Returns a table that scrolls sideways where it is wider than the page.

    Args:
      head: the headings.
      rows: rows as elements, or as lists of cells; the first cell of a list is a heading.
      kind: its class in the style sheet.
      sortable: whether a click on a heading sorts the rows.
    """
    titles = [element("button", title, type="button") if sortable else title for title in head]
    top = element("tr", [element("th", title, scope="col") for title in titles])
    body = [row if isinstance(row, ET.Element) else _row(row) for row in rows]
    made = element("table", element("thead", top), element("tbody", body), class_=kind)
    return element("div", made, class_="wide", tabindex="0")


def _row(cells):
    first, *others = cells
    return element("tr", element("th", first, scope="row"), [_cell(cell) for cell in others])


def _cell(cell):
    is_cell = isinstance(cell, ET.Element) and cell.tag == "td"
    return cell if is_cell else element("td", cell)
