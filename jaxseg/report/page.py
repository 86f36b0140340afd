"""Puts the page together: one file, without anything from outside."""

import datetime
import importlib.metadata
import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np

from jaxseg.report import tables
from jaxseg.report.bootstrap import LEVEL, RESAMPLES
from jaxseg.report.charts import QUANTITIES, line_chart
from jaxseg.report.comparison import Compared, compare
from jaxseg.report.confusion import confusion_matrix_chart, largest_confusions
from jaxseg.report.markup import element, render
from jaxseg.report.pictures import STOPS, find_panels, same_image_elsewhere, slider_figure
from jaxseg.report.run import Run
from jaxseg.zoo.weights import Model

FOLDER = pathlib.Path(__file__).parent
CONFUSIONS = 12  # rows of the list of confusions
NAMED = 40  # colors of more classes are folded away

INTERVALS = (
    f"Brackets hold {LEVEL:.0%} bootstrap intervals over the images ({RESAMPLES:,} resamples; for"
    " differences, both runs on the same resamples). ▲ and ▼ mark differences whose interval"
    " excludes zero. With many classes, some do so by chance. Another seed of the training may"
    " change scores by more than an interval."
)


def make_page(
    runs: Sequence[Run], published: Model | None = None, pictures: int = 6
) -> tuple[str, list[str]]:
    """Makes the page.

    Args:
      runs: what to compare; the first one is the one that others are compared with.
      published: a published model whose scores are shown beside the runs.
      pictures: how many of the worst, and of the best, images of each run to show.

    Returns:
      The page as HTML, and notes on what is left out and why.

    Raises:
      RunError: if a picture of a run is damaged.
    """
    compared, notes = compare(runs)
    title = "Report of " + ", ".join(run.name for run in runs)
    sections = {
        "Scores": _scores(compared, published, notes),
        "Curves": _curves(runs, published),
        "Classes": _classes(compared),
        "Confusion": _confusion(runs),
        "Images": _images(runs, pictures),
        "Settings": _settings(runs),
        "Versions and devices": tables.facts_table(runs)
        or element("p", "No run tells what it was made with."),
    }
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    menu = element(
        "nav", [element("a", name, href=f"#{anchor}") for name, anchor in anchors.items()]
    )
    body = [
        element("section", element("h2", name), content, id=anchors[name])
        for name, content in sections.items()
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", (FOLDER / "page.css").read_text(encoding="utf-8")),
    )
    script = element("script", (FOLDER / "page.js").read_text(encoding="utf-8"))
    top = element("header", element("h1", title), element("p", _made(), class_="faint"), menu)
    page = element("html", head, element("body", top, element("main", body), script), lang="en")
    return f"<!doctype html>\n{render(page)}\n", notes


def _made():
    today = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    return f"made by jaxseg {importlib.metadata.version('jaxseg')} at {today}"


def _scores(compared: Sequence[Compared], published, notes):
    parts = [tables.summary_table(compared, published)]
    if published:
        parts.append(element("p", f"Published: {published.name} ({published.config})."))
    if any(row.run.evaluation and row.run.evaluation.counts for row in compared):
        parts.append(element("p", INTERVALS))
    if notes:
        parts.append(element("ul", [element("li", note) for note in notes], class_="notes"))
    return parts


def _curves(runs, published):
    legend = element(
        "p",
        [tables.run_label(number, run.name) for number, run in enumerate(runs)],
        class_="legend",
    )
    charts = []
    last_step = max((int(c.steps[-1]) for run in runs for c in run.curves.values()), default=0)
    for quantity in QUANTITIES:
        curves = [
            (number, run.name, run.curves[quantity.key])
            for number, run in enumerate(runs)
            if quantity.key in run.curves and np.isfinite(run.curves[quantity.key].values).any()
        ]
        reference = None
        if quantity.key == "mIoU" and published and published.miou_ss is not None:
            reference = "published, single scale", published.miou_ss / 100
        if curves:
            charts.append(line_chart(quantity, curves, reference, last_step))
    if not charts:
        return element("p", "No run has a log of its training.")
    return [legend, element("div", charts, class_="charts")]


def _classes(compared):
    found = tables.class_table(compared)
    if found is None:
        return element("p", "No run has scores of its classes.")
    return [
        element("p", "IoU in percent, differences in percent points. A heading sorts the rows."),
        found,
    ]


def _confusion(runs):
    parts = []
    for number, run in enumerate(runs):
        if run.evaluation is None or run.evaluation.counts is None:
            continue
        counts = run.evaluation.counts
        chart = confusion_matrix_chart(counts.confusion, counts.classes)
        largest = largest_confusions(counts.confusion, counts.classes, CONFUSIONS)
        parts.append(
            element(
                "figure",
                element("figcaption", tables.run_label(number, run.name)),
                element("div", chart, class_="wide", tabindex="0"),
                element(
                    "details",
                    element("summary", "largest confusions"),
                    tables.confusions_table(largest),
                ),
                class_="matrix",
            )
        )
    if not parts:
        return element("p", "No run has kept the numbers of its confusion matrix.")
    text = (
        "Rows are labels, columns are predictions. Numbers are percent of the label's pixels."
        " Squares below 0.05 % are empty."
    )
    return [element("p", text), element("div", parts, class_="matrices")]


def _images(runs, count) -> list[ET.Element] | ET.Element:
    panels = {
        run.name: find_panels(run.evaluation, count) for run in runs if run.evaluation is not None
    }
    parts: list[ET.Element] = []
    for number, run in enumerate(runs):
        for kind, found in panels.get(run.name, {}).items():
            heading = f"{kind} images of " if len(found) > 1 else f"{kind} image of "
            parts.append(element("h3", heading, tables.run_label(number, run.name)))
            figures = [
                slider_figure(panel, same_image_elsewhere(panels, run, panel.image))
                for panel in found
            ]
            parts += [element("div", figures, class_="pictures"), _palette(run.evaluation)]
    if not parts:
        return element("p", "There are no pictures.")
    together = [
        element("button", stop, type="button", data_all=str(index))
        for index, stop in enumerate(STOPS)
    ]
    text = (
        "IoU of an image is the mean over the classes in its label or prediction. Errors are red,"
        " ignored pixels gray. The slider moves with the arrow keys."
    )
    return [
        element("p", text),
        element("p", "Show in all: ", together, class_="stops"),
        *parts,
    ]


def _palette(evaluation):
    """Returns the colors of the classes that occur in the evaluation."""
    counts = evaluation.counts
    areas = counts.labeled.sum(axis=0) + counts.predicted.sum(axis=0)
    chips = [
        element(
            "li",
            element("i", class_="swatch", style=f"--c: rgb({red} {green} {blue})"),
            name,
        )
        for name, (red, green, blue), area in zip(
            counts.classes, counts.palette.tolist(), areas.tolist(), strict=True
        )
        if area
    ]
    return element(
        "details",
        element("summary", "colors of the classes"),
        element("ul", chips, class_="palette"),
        open=len(chips) <= NAMED,
    )


def _settings(runs):
    known = [run for run in runs if run.config]
    if not known:
        return element("p", "No run has a config.json.")
    parts = []
    if len(known) > 1:
        differences = tables.config_table(runs)
        parts.append(differences or element("p", "All settings are equal."))
    parts += [
        element(
            "details",
            element("summary", f"all settings of {run.name}"),
            tables.config_list(run.config),
        )
        for run in known
    ]
    return parts
