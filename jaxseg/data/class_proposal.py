"""Proposes a file of class names for labels that nobody has described yet."""

import collections
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxseg.data import picture_files
from jaxseg.data.annotations.color_masks import color_codes
from jaxseg.data.annotations.labelme import read_json
from jaxseg.data.datasets.description import (
    ANNOTATIONS,
    BACKGROUND,
    EACH_CLASS,
    IGNORE,
    MASKS,
    is_coco_file,
)
from jaxseg.data.decoding import pictures
from jaxseg.data.readers.label_files import class_folders
from jaxseg.errors import DataError
from jaxseg.recipes.class_list import IGNORED, MOST_CLASSES

THREADS = 8


def propose_classes(data: ConfigDict) -> list[str]:
    """Returns the lines of a file of class names for the labels of the training split.

    Masks give their values, or their colors if they have three channels, with their shares of the
    pixels. Annotations give their names, with the number of shapes.

    Args:
      data: has root, train_split, labels and label_suffix.

    Raises:
      DataError: if there are no labels, if one cannot be read, or if masks have more values or
        colors than there can be classes.
    """
    labels = Path(data.root) / data.labels.replace("{split}", data.train_split)
    suffixes = data.label_suffix.split() or [*MASKS, ANNOTATIONS]
    if is_coco_file(labels):
        return _names(labels, _names_of_coco(labels), "annotation")
    if EACH_CLASS in str(labels):
        counts = {
            name: len(picture_files.find(folder, suffixes).names)
            for name, folder in class_folders(labels).items()
        }
        return _names(labels, collections.Counter(counts), "mask")
    if EACH_CLASS in data.label_suffix:
        return _names(labels, _names_of_suffixes(labels, suffixes), "mask")
    names = picture_files.find(labels, suffixes).names
    files = [labels / name for name in names]
    masks = [file for file in files if file.suffix.lower() != ANNOTATIONS]
    if not files:
        raise DataError(
            f"no labels ({' '.join(suffixes)}) in {labels}; set config.data.labels and"
            " config.data.label_suffix"
        )
    if masks:
        return _of_masks(labels, masks)
    counts = collections.Counter()
    for file in files:
        try:
            counts.update(str(shape["label"]) for shape in read_json(file).get("shapes") or ())
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} is not a file of LabelMe: a shape has no label") from error
    return _names(labels, counts, "shape")


def _names_of_coco(file):
    content = read_json(file)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        counts = collections.Counter({name: 0 for name in names.values()})
        for annotation in content.get("annotations") or ():
            for part in annotation.get("segments_info") or [annotation]:
                if part.get("category_id") in names:
                    counts[names[part["category_id"]]] += 1
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a COCO file: its categories need an id and a name ({error})"
        ) from error
    return counts


def _names_of_suffixes(folder, suffixes):
    counts = collections.Counter()
    for suffix in suffixes:
        before, _, after = suffix.partition(EACH_CLASS)
        for name in picture_files.find(folder, [after]).names:
            stem = name[: len(name) - len(after)]
            if before and before in stem:
                counts[stem.rpartition(before)[2]] += 1
    return counts


def _names(place: Path, counts: collections.Counter[str], unit: str) -> list[str]:
    if not counts:
        raise DataError(f"{place} names no classes")
    lines = [f"# The names in {place}, the most frequent first."]
    if not any(name.lower() in BACKGROUND for name in counts):
        lines.append("# Pixels that nothing covers are ignored. If they are a class, add the line:")
        lines.append("# background")
    for name, count in counts.most_common():
        lines += [f"# {_counted(count, unit)}", name]
    return lines


def _counted(count, unit):
    return f"{count} {unit}" + "s" * (count != 1)


def _of_masks(folder, files):
    pixels, masks = collections.Counter(), collections.Counter()
    drawn = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for number, (kind, counts, palette) in enumerate(threads.map(_count, files), start=1):
            for key, count in counts.items():
                pixels[kind, key] += count
                masks[kind, key] += 1
            drawn |= palette
            if problem := _problem(pixels, _counted(number, "mask")):
                threads.shutdown(cancel_futures=True)  # one look at a few photographs is enough
                raise DataError(f"{folder}: {problem}")
    ((kind, _), *_) = pixels
    lines = [
        f"# The {kind} of {_counted(len(files), 'mask')} in {folder}.",
        f"# Give every class its name. The same name is the same class; {IGNORED} is not counted.",
    ]
    total = sum(pixels.values())
    for number, (_, key) in enumerate(sorted(pixels)):
        share, count = pixels[kind, key] / total, masks[kind, key]
        lines.append(f"# {share:.3%} of the pixels, in {_counted(count, 'mask')}")
        if kind == "values":
            name = IGNORED if key == IGNORE else f"class_{key}"
            lines.append(f"{key}: {name}" + (f" #{drawn[key]:06x}" if key in drawn else ""))
        else:
            lines.append(f"#{key:06x}: class_{number}")
    return lines


def _problem(pixels, looked_at):
    kinds = {kind for kind, _ in pixels}
    if len(kinds) > 1:
        return (
            "there are masks of one value per pixel and masks of colors; move one kind away, or set"
            " config.data.label_suffix"
        )
    if len(pixels) > MOST_CLASSES + 1:
        return (
            f"there are {len(pixels)} {kinds.pop()} in the first {looked_at}, and a model has at"
            f" most {MOST_CLASSES} classes. Are they photographs, or were they smoothed or resized?"
        )
    return ""


def _count(file: Path) -> tuple[str, dict[int, int], dict[int, int]]:
    """Returns what a mask holds, how often, and the colors of its palette by value."""
    if pictures.has_colors(file):
        kind, pixels = "colors", color_codes(pictures.read_colors(file))
    else:
        kind, pixels = "values", pictures.read_raw_label(file)
    keys, counts = np.unique(pixels, return_counts=True)
    palette = pictures.palette_of(file)
    codes = [] if palette is None else color_codes(palette).tolist()
    counts = dict(zip(keys.tolist(), counts.tolist(), strict=True))
    return kind, counts, {key: codes[key] for key in counts if key < len(codes)}
