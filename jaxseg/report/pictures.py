"""Finds the worst and the best images of a run, and puts them into the page.

The evaluation draws them as panels of image, label, prediction and errors. The panels are cut, and
each part becomes a JPEG within the page, so that the page needs no other file.
"""

import base64
import dataclasses
import io
import math
import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg.report.markup import element
from jaxseg.report.records import RunError, number, read_table
from jaxseg.report.run import Evaluation, Run
from jaxseg.reporting.visualize import cut_panel

QUALITY = 85  # of JPEG
STOPS = ("image", "label", "prediction", "errors")
STEPS_BETWEEN = 4  # positions of the slider from one picture to the next


@dataclasses.dataclass(frozen=True)
class Panel:
    """An image that the evaluation has drawn.

    Attributes:
      image: the path of the image, as in `images.csv`.
      name: its name in the file of the panel.
      iou: mean IoU of the image.
      accuracy: share of its labeled pixels that are predicted correctly.
      file: the panel.
      image_hw: height and width of the image.
    """

    image: str
    name: str
    iou: float
    accuracy: float
    file: pathlib.Path
    image_hw: tuple[int, int]


def find_panels(evaluation: Evaluation, count: int) -> dict[str, list[Panel]]:
    """Finds the panels of the worst and of the best images.

    Args:
      evaluation: an evaluation with counts per image.
      count: how many of each to find at most. The evaluation may have drawn fewer.

    Returns:
      The panels of "worst" and "best", in this order.

    Raises:
      RunError: if `images.csv` is damaged.
    """
    if evaluation.counts is None or evaluation.folder is None:
        return {}
    table = evaluation.folder / "images.csv"
    if not table.exists():
        return {}
    sizes = dict(zip(evaluation.counts.images, evaluation.counts.image_hw.tolist(), strict=True))
    rows = [row for row in read_table(table, ("image", "iou", "acc")) if row["image"] in sizes]
    found = {}
    for kind, ranked in (("worst", rows), ("best", rows[::-1])):
        panels = []
        for rank, row in enumerate(ranked[:count], start=1):
            file = _panel_file(evaluation.folder / kind, rank, row["image"])
            if file is not None:
                height, width = sizes[row["image"]]
                panels.append(
                    Panel(
                        image=row["image"],
                        name=_name(file),
                        iou=number(row["iou"]),
                        accuracy=number(row["acc"]),
                        file=file,
                        image_hw=(height, width),
                    )
                )
        if panels:
            found[kind] = panels
    return found


def _panel_file(folder, rank, image):
    """Returns the panel of an image, or None. Panels of earlier evaluations may lie beside it."""
    fitting = [file for file in folder.glob(f"{rank:02d}_*.png") if _name(file) in image]
    return max(fitting, key=lambda file: len(file.name), default=None)


def _name(file):
    return file.stem.partition("_")[2]


def read_parts(panel: Panel) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Reads image, label, prediction and errors from a panel.

    Raises:
      RunError: if the file cannot be read, or is no panel of the image.
    """
    try:
        with Image.open(panel.file) as picture:
            return cut_panel(np.asarray(picture.convert("RGB")), panel.image_hw)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RunError(
            f"{panel.file} is no panel of the image {panel.image}: {error}; evaluate the run again"
        ) from error


def data_uri(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """Returns an RGB picture as the address of a JPEG that lies in the page itself."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def slider_figure(panel: Panel, others: Mapping[str, Panel]) -> ET.Element:
    """Returns a figure with a slider from the image over its label to prediction and errors.

    Args:
      panel: the image in the run that is shown.
      others: the same image in other runs, by their names. Their predictions and errors follow.
    """
    pictures = dict(zip(STOPS, read_parts(panel), strict=True))
    for name, other in others.items():
        parts = dict(zip(STOPS, read_parts(other), strict=True))
        pictures |= {f"{stop} of {name}": parts[stop] for stop in STOPS[2:]}
    height, width, _ = pictures["image"].shape
    images = [
        element(
            "img", src=data_uri(picture), alt=f"{stop}: {panel.name}", width=width, height=height
        )
        for stop, picture in pictures.items()
    ]
    slider = element(
        "input",
        type="range",
        min="0",
        max=str(len(pictures) - 1),
        step=str(1 / STEPS_BETWEEN),
        value="0",
        aria_label=f"what is shown of {panel.name}",
        data_stops="|".join(stop.replace("|", "/") for stop in pictures),
    )
    stops = [
        element("button", stop, type="button", data_stop=str(index))
        for index, stop in enumerate(pictures)
    ]
    caption = element(
        "figcaption",
        element("b", panel.name),
        f" IoU {_percent(panel.iou)}, accuracy {_percent(panel.accuracy)}",
    )
    stack = element("div", images, class_="stack")
    return element("figure", caption, stack, slider, element("div", stops, class_="stops"))


def same_image_elsewhere(
    panels: Mapping[str, Mapping[str, list[Panel]]], run: Run, image: str
) -> dict[str, Panel]:
    """Returns the panels of an image in the other runs, by their names.

    Args:
      panels: the panels of "worst" and "best" of each run, by its name.
      run: the run to leave out.
      image: the path of the image.
    """
    return {
        name: panel
        for name, kinds in panels.items()
        if name != run.name
        for found in kinds.values()
        for panel in found
        if panel.image == image
    }


def _percent(value):
    return "undefined" if math.isnan(value) else f"{100 * value:.1f}"
