"""Describes a user's own images and labels by settings and a list of class names."""

import functools
from collections.abc import Iterable

from ml_collections import ConfigDict

from jaxseg.data.annotations.color_masks import ColorMask
from jaxseg.data.annotations.labelme import LabelMeLabel
from jaxseg.data.datasets.class_colors import class_colors
from jaxseg.data.datasets.description import (
    CUSTOM,
    IGNORE,
    ClassNames,
    Dataset,
    LabelFormat,
    label_table,
)
from jaxseg.data.division import Division
from jaxseg.recipes.class_list import ClassList, parse_lines

MASKS, ANNOTATIONS = (".png", ".tif", ".tiff", ".bmp"), ".json"


def describe(data: ConfigDict) -> Dataset:
    """Returns the dataset that the settings describe.

    Args:
      data: has class_lines, images, labels, image_suffix, label_suffix, split_list, val_share,
        share_by and share_seed.
    """
    found = parse_lines(data.class_lines)
    names = ClassNames.of(found.names)
    division = None
    if share := data.val_share:
        division = Division(data.train_split, data.val_split, share, data.share_by, data.share_seed)
    suffixes = tuple(data.label_suffix.split()) or (*MASKS, ANNOTATIONS)
    return Dataset(
        name=CUSTOM,
        classes=found.classes,
        palette=class_colors(len(found.classes), found.drawn),
        images=data.images,
        image_suffix=data.image_suffix,
        labels=(data.labels,),
        label_formats=tuple(_format(suffix, found, names) for suffix in suffixes),
        split_list=data.split_list,
        label_origin="config.data.classes lists what the labels hold. Set folders and suffixes in"
        " config.data.images, labels, image_suffix and label_suffix.",
        class_names=names,
        division=division,
    )


def _format(suffix: str, found: ClassList, names: ClassNames) -> LabelFormat:
    drawn = label_table({k: k for k in range(len(found.classes))})
    if suffix.lower().endswith(ANNOTATIONS):
        return LabelFormat(suffix, drawn, functools.partial(LabelMeLabel, names=names))
    if found.colors:
        return LabelFormat(
            suffix,
            label_table(_train_ids(enumerate(found.colors.values()))),
            functools.partial(ColorMask, colors=tuple(found.colors)),
            tuple(f"#{bytes(color).hex()}" for color in found.colors),
        )
    return LabelFormat(suffix, label_table(_train_ids(found.values.items())))


def _train_ids(pairs: Iterable[tuple[int, int | None]]) -> dict[int, int]:
    return {value: IGNORE if k is None else k for value, k in pairs}
