"""Describes ISPRS Potsdam: aerial images of a city in tiles, 6 classes."""

from jaxseg.data.datasets.description import (
    IGNORE,
    Dataset,
    LabelFormat,
    colors,
    label_table,
    names,
)

POTSDAM = Dataset(
    name="potsdam",
    classes=names("impervious_surface, building, low_vegetation, tree, car, clutter"),
    palette=colors("ffffff 0000ff 00ffff 00ff00 ffff00 ff0000"),
    images="img_dir/{split}",
    image_suffix=".png",
    labels=("ann_dir/{split}",),
    # The raw value 0 marks the boundary between two classes.
    label_formats=(LabelFormat(".png", label_table({0: IGNORE} | {k + 1: k for k in range(6)})),),
    label_origin="MMSegmentation's potsdam.py cuts the release into these tiles.",
)
