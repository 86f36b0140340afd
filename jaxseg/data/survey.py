"""Surveys a dataset: image sizes, label values and their meaning, and faults."""

import collections
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxseg.data import picture_files
from jaxseg.data.annotations.drawn_label import DrawnLabel
from jaxseg.data.datasets.description import IGNORE, UNKNOWN, Dataset, LabelFormat, ranges
from jaxseg.data.decoding import pictures
from jaxseg.data.picture_files import Skipped
from jaxseg.data.samples import Pairs
from jaxseg.errors import DataError, first_few

THREADS = 8


@dataclasses.dataclass
class Values:
    """Counts how often each of the 256 values occurs in the labels of one format.

    Attributes:
      pixels: the number of pixels with each value, int64 [256].
      images: the number of labels that contain each value, int64 [256].
    """

    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))


@dataclasses.dataclass
class Survey:
    """Holds what a survey found in a dataset.

    Attributes:
      dataset: the dataset.
      sizes: the number of images of each (height, width).
      values: the counts of label values, by label format.
      faults: what training or evaluation would stop at, one line each.
      labels_alone: the labels that have no image.
      skipped: files and folders beside them that are not read, and why.
      overlaps: the number of pixels in shapes of several classes, for each label that has some.
    """

    dataset: Dataset
    sizes: collections.Counter[tuple[int, int]]
    values: dict[LabelFormat, Values]
    faults: list[str]
    labels_alone: tuple
    skipped: tuple[Skipped, ...]
    overlaps: list[int] = dataclasses.field(default_factory=list)

    def class_pixels(self) -> np.ndarray:
        """Returns the number of pixels of every class, int64 [K]."""
        counts = np.zeros(256, np.int64)
        for form, values in self.values.items():
            np.add.at(counts, form.train_ids, values.pixels)
        return counts[: len(self.dataset.classes)]

    def __str__(self) -> str:
        lines = [f"  sizes: {_sizes(self.sizes)}"]
        for form, values in self.values.items():
            lines += _table(self.dataset, form, values)
        if any(_joins(form, values) for form, values in self.values.items()):
            lines += _classes(self.dataset, self.class_pixels())
        absent = np.flatnonzero(self.class_pixels() == 0)
        if len(absent):
            names = ", ".join(self.dataset.classes[k] for k in absent)
            lines.append(f"  classes without a pixel ({len(absent)}): {names}")
        if len(self.dataset.classes) - len(absent) == 1:
            lines.append("  all labels hold one class; a model learns nothing from that")
        if self.overlaps:
            count = f"{len(self.overlaps)} label" + "s" * (len(self.overlaps) > 1)
            lines.append(
                f"  {sum(self.overlaps)} pixels of {count} belong to shapes of several classes; the"
                " last shape in a file counts"
            )
        if self.labels_alone:
            shown = first_few(self.labels_alone)
            lines.append(f"  labels without an image ({len(self.labels_alone)}):{shown}")
        lines += [f"  {line}" for line in picture_files.describe(self.skipped)]
        if self.faults:
            faults = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
            lines.append(f"  {faults}:{first_few(self.faults)}")
        return "\n".join(lines)


def survey(dataset: Dataset, pairs: Pairs) -> Survey:
    """Surveys a dataset: reads every label, and the header and checksums of every image."""
    named = " or ".join(f"*{form.suffix}" for form in dataset.label_formats)
    faults = [f"{image} has no label ({named})" for image in pairs.images_alone]
    result = Survey(dataset, collections.Counter(), {}, faults, pairs.labels_alone, pairs.skipped)
    with ThreadPoolExecutor(THREADS) as threads:
        for sample, found in zip(pairs.samples, threads.map(_look, pairs.samples), strict=True):
            hw, pixels, fault, overlap = found
            faults.extend([fault] if fault else [])
            result.overlaps.extend([overlap] if overlap else [])
            if hw:
                result.sizes[hw] += 1
            if pixels is not None and (form := sample.label_format):
                values = result.values.setdefault(form, Values())
                values.pixels += pixels
                values.images += pixels > 0
    if not faults and not result.class_pixels().any():
        faults.append(f"none of the {len(pairs.samples)} labels has a pixel of any class")
    return result


def _look(sample):
    """Returns (image size, pixels of each label value, fault, pixels in several shapes).

    The first three may be None.
    """
    hw = pixels = None
    overlap = 0
    try:
        pictures.check_image(sample.image)
        hw = pictures.image_hw(sample.image)
        if isinstance(sample.label, DrawnLabel):
            canvas = sample.label.draw()
            raw, overlap = canvas.label, int(canvas.overlap.sum())
        else:
            raw = pictures.read_raw_label(sample.label)
    except DataError as error:
        return hw, pixels, str(error), overlap
    pixels = np.bincount(raw.ravel(), minlength=256)
    unknown = np.flatnonzero((sample.label_format.train_ids == UNKNOWN) & (pixels > 0))
    if len(unknown):
        return hw, pixels, f"{sample.label} holds {ranges(unknown)}: not in the table", overlap
    if raw.shape != hw:
        (h, w), (label_h, label_w) = hw, raw.shape
        fault = f"{sample.image} is {h}x{w}, its label {label_h}x{label_w}"
        if raw.shape == hw[::-1]:
            fault += " (images are rotated according to their EXIF data, labels are not)"
        return hw, pixels, fault, overlap
    return hw, pixels, None, overlap


def _table(dataset, form, values):
    """Yields a line for every value found: its meaning, its share of pixels, its images."""

    def meaning(value):
        train_id = form.train_ids[value]
        names = {IGNORE: "(ignored)", UNKNOWN: "NOT IN THE TABLE"}
        return names.get(train_id) or f"{train_id} {dataset.classes[train_id]}"

    total = values.pixels.sum()
    yield f"  *{form.suffix}: value, class, share of the pixels, images"
    for value in np.flatnonzero(values.pixels):
        share = values.pixels[value] / total
        name = form.value_names[value] if form.value_names else value
        yield f"  {name:>5}  {meaning(value):<30}{share:>9.3%}{values.images[value]:>9}"


def _joins(form, values):
    """Returns whether several of the values found mean the same class."""
    meant = form.train_ids[values.pixels > 0]
    meant = meant[meant < UNKNOWN]
    return len(np.unique(meant)) < len(meant)


def _classes(dataset, pixels):
    """Yields a line for every class found, over all its values: its share of labeled pixels."""
    yield "  class, share of the labeled pixels"
    for k in np.flatnonzero(pixels):
        yield f"  {k:>5}  {dataset.classes[k]:<30}{pixels[k] / pixels.sum():>9.3%}"


def _sizes(sizes, limit=5):
    """Returns a text with the most frequent sizes, and the range of the others."""
    common = sizes.most_common()
    text = ", ".join(f"{h}x{w} ({count})" for (h, w), count in common[:limit])
    if rest := [hw for hw, _ in common[limit:]]:
        low, high = np.min(rest, axis=0), np.max(rest, axis=0)
        text += f" and {len(rest)} more, {low[0]} to {high[0]} high and {low[1]} to {high[1]} wide"
    return text
