"""Describes a user's own images and masks by settings and a list of class names."""

import colorsys

import numpy as np
from ml_collections import ConfigDict

from jaxseg.data.datasets.description import IGNORE, Dataset, LabelFormat, label_table
from jaxseg.recipes.class_list import parse_lines

NAME = "custom"


def describe(data: ConfigDict) -> Dataset:
    """Returns the dataset that the settings describe.

    Args:
      data: has class_lines, images, labels, image_suffix and label_suffix.
    """
    classes, meanings = parse_lines(data.class_lines)
    train_ids = {value: IGNORE if k is None else k for value, k in meanings.items()}
    return Dataset(
        name=NAME,
        classes=classes,
        palette=palette(len(classes)),
        images=data.images,
        image_suffix=data.image_suffix,
        labels=(data.labels,),
        label_formats=(LabelFormat(data.label_suffix, label_table(train_ids)),),
        label_origin="A mask has one value per pixel; config.data.classes lists the values. Set"
        " folders and suffixes in config.data.images, labels, image_suffix and label_suffix.",
    )


def palette(count: int) -> np.ndarray:
    """Returns colors that differ from their neighbors, uint8 [count, 3] in RGB.

    Their hues are a golden ratio apart.
    """
    colors = [colorsys.hsv_to_rgb(k * 0.618 % 1, 0.75, (0.95, 0.65)[k % 2]) for k in range(count)]
    return np.round(255 * np.array(colors)).astype(np.uint8)
