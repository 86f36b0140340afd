"""Describes a user's own images and labels by settings and a list of class names."""

import functools
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from jaxseg.data.annotations.color_masks import ColorMask
from jaxseg.data.annotations.labelme import LabelMeLabel
from jaxseg.data.datasets.class_colors import class_colors
from jaxseg.data.datasets.description import (
    ANNOTATIONS,
    CUSTOM,
    EACH_CLASS,
    IGNORE,
    MASKS,
    ClassNames,
    Dataset,
    LabelFormat,
    is_coco_file,
    label_table,
)
from jaxseg.data.division import VALIDATION, Division
from jaxseg.errors import ConfigError
from jaxseg.recipes.class_list import ClassList, parse_lines


def describe(data: ConfigDict) -> Dataset:
    """Returns the dataset that the settings describe.

    Args:
      data: has class_lines, images, labels, image_suffix, label_suffix, split_list, val_share,
        share_by and share_seed.

    Raises:
      ConfigError: if the class names, or the settings of the division, do not fit.
    """
    found = parse_lines(data.class_lines)
    names = ClassNames.of(found.names)
    return Dataset(
        name=CUSTOM,
        classes=found.classes,
        palette=class_colors(len(found.classes), found.drawn),
        images=data.images,
        image_suffix=data.image_suffix,
        labels=(data.labels,),
        label_formats=tuple(_formats(data, found, names)),
        split_list=data.split_list,
        label_origin="config.data.classes lists what the labels hold. Set folders and suffixes in"
        " config.data.images, labels, image_suffix and label_suffix.",
        class_names=names,
        division=_division(data),
        drawn_by="\n".join(data.class_lines),
    )


def _division(data: ConfigDict) -> Division | None:
    if not data.val_share:
        return None
    several = data.train_split if "+" in data.train_split else ""
    for key, value in (("split_list", data.split_list), ("train_split", several)):
        if value:
            raise ConfigError(
                f"config.data.val_share={data.val_share} divides the images of one folder, and does"
                f" not go with config.data.{key}={value}; leave one of them out"
            )
    if data.train_split == VALIDATION:
        raise ConfigError(
            f"config.data.val_share={data.val_share} makes the split {VALIDATION!r} of another one;"
            f" config.data.train_split={data.train_split} cannot be it"
        )
    return Division(data.train_split, data.val_share, data.share_by, data.share_seed)


def _formats(data: ConfigDict, found: ClassList, names: ClassNames) -> Iterator[LabelFormat]:
    """Yields how the labels may be stored, in order of preference."""
    drawn = label_table({k: k for k in range(len(found.classes))})
    suffixes = data.label_suffix.split()
    if is_coco_file(data.labels):
        yield LabelFormat(ANNOTATIONS, drawn)
        return
    if EACH_CLASS in data.labels + data.label_suffix:
        yield from (LabelFormat(suffix, drawn) for suffix in suffixes or MASKS)
        return
    if not suffixes:  # masks beside the images would need another suffix
        suffixes = [ANNOTATIONS] if data.labels == data.images else [*MASKS, ANNOTATIONS]
    colors = tuple(found.colors)
    for suffix in suffixes:
        if suffix.lower().endswith(ANNOTATIONS):
            yield LabelFormat(suffix, drawn, functools.partial(LabelMeLabel, names=names))
        elif colors:
            yield LabelFormat(
                suffix,
                label_table(_train_ids(enumerate(found.colors.values()))),
                functools.partial(ColorMask, colors=colors),
                tuple(f"#{bytes(color).hex()}" for color in colors),
            )
        else:
            yield LabelFormat(suffix, label_table(_train_ids(found.values.items())))


def _train_ids(pairs: Iterable[tuple[int, int | None]]) -> dict[int, int]:
    return {value: IGNORE if k is None else k for value, k in pairs}
