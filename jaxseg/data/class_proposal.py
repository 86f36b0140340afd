"""Proposes a file of class names for labels that nobody has described yet."""

import collections
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxseg.data import picture_files
from jaxseg.data.annotations.color_masks import color_codes
from jaxseg.data.annotations.labelme import read_json
from jaxseg.data.datasets.custom import ANNOTATIONS, MASKS
from jaxseg.data.datasets.description import IGNORE
from jaxseg.data.decoding import pictures
from jaxseg.errors import DataError
from jaxseg.recipes.class_list import IGNORED, MOST_CLASSES

THREADS = 8
CLASS = "{class}"


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
    if labels.suffix.lower() == ANNOTATIONS:
        return _names(labels, _names_of_coco(labels))
    if CLASS in str(labels):
        folder = Path(str(labels).partition(CLASS)[0])
        found = sorted(path.name for path in folder.glob("*") if path.is_dir())
        return _names(folder, collections.Counter(found))
    suffixes = data.label_suffix.split() or [*MASKS, ANNOTATIONS]
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
    shapes = (shape for file in files for shape in read_json(file).get("shapes", ()))
    return _names(labels, collections.Counter(str(shape.get("label")) for shape in shapes))


def _names_of_coco(file):
    content = read_json(file)
    names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", ())}
    counts = collections.Counter({name: 0 for name in names.values()})
    for annotation in content.get("annotations", ()):
        for part in annotation.get("segments_info", [annotation]):
            counts[names.get(part.get("category_id"), "?")] += 1
    return counts


def _names(place: Path, counts: collections.Counter[str]) -> list[str]:
    if not counts:
        raise DataError(f"{place} names no classes")
    lines = [f"# The names in {place}, the most frequent first."]
    for name, count in counts.most_common():
        lines += [f"# {count} times", name]
    return lines


def _of_masks(folder, files):
    pixels, masks = collections.Counter(), collections.Counter()
    drawn = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for kind, counts, palette in threads.map(_count, files):
            for key, count in counts.items():
                pixels[kind, key] += count
                masks[kind, key] += 1
            drawn |= palette
    kinds = {kind for kind, _ in pixels}
    if len(kinds) > 1:
        raise DataError(
            f"{folder} has masks of one value per pixel and masks of colors; move one kind away, or"
            " set config.data.label_suffix"
        )
    (kind,) = kinds
    if len(pixels) > MOST_CLASSES + 1:
        raise DataError(
            f"the {len(files)} masks in {folder} have {len(pixels)} {kind}, and a model has at most"
            f" {MOST_CLASSES} classes. Are they photographs, or were they smoothed or resized?"
        )
    lines = [
        f"# The {kind} of {len(files)} masks in {folder}. Give every class its name; classes with"
        " the same name",
        f"# are one class, and {IGNORED} is not counted.",
    ]
    total = sum(pixels.values())
    for number, (_, key) in enumerate(sorted(pixels)):
        share, count = pixels[kind, key] / total, masks[kind, key]
        lines.append(f"# {share:.3%} of the pixels, in {count} masks")
        if kind == "values":
            name = IGNORED if key == IGNORE else f"class_{key}"
            lines.append(f"{key}: {name}" + (f" #{drawn[key]:06x}" if key in drawn else ""))
        else:
            lines.append(f"#{key:06x}: class_{number}")
    return lines


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
