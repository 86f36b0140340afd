"""Reads packed datasets, which `jaxseg.data.pack` writes: splits as shards of ArrayRecord files.

    packed.json                       the dataset's name, and whether its pictures are decoded
    SPLIT/samples.json                the samples, and whether all shards are complete
    SPLIT/00000-of-00012.array_record

Record 2i of a shard is the image of the shard's sample i, and record 2i + 1 is its label. A record
is the original file, or the decoded picture in the format of `jaxseg.data.decoding.arrays`. Labels
keep their raw values, so one packed folder serves every dataset that reads the same files. Labels
that are drawn from annotations or colors are stored as drawn, and serve one list of class names.
"""

import functools
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxseg.data.datasets.description import Dataset
from jaxseg.data.samples import NamedSample, Pairs
from jaxseg.errors import DataError, first_few

VERSION = 1
HEADER = "packed.json"
SAMPLES = "samples.json"
COMMAND = "jaxseg pack"
# No read-ahead and no threads: records are read one at a time, also in forked processes.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
OPEN_SHARDS = 512  # per process, below the usual limit of 1024 files


@dataclass(frozen=True)
class Record:
    """Reads one record of a shard as the `PictureFile` that it was made from.

    Attributes:
      shard: the ArrayRecord file.
      index: the record's place in the shard.
      file: the path of the original picture below the root of its dataset.
    """

    shard: Path
    index: int
    file: str

    @property
    def stem(self) -> str:
        return PurePosixPath(self.file).stem

    def read_bytes(self) -> bytes:
        try:
            return _reader(self.shard).read([self.index])[0]
        except RuntimeError as error:
            raise OSError(str(error)) from error

    def open(self, mode: str) -> io.BufferedIOBase:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return f"{self.file} (record {self.index} of {self.shard})"


@functools.lru_cache(OPEN_SHARDS)
def _reader(shard):
    # Imported here, since there is no array_record for Windows.
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(shard), options=READER_OPTIONS, file_reader_buffer_size=1 << 15)


def is_packed(root: Path) -> bool:
    """Returns whether a folder holds a packed dataset."""
    return (root / HEADER).is_file()


def pairs(dataset: Dataset, root: Path, splits: Sequence[str], *, labeled: bool) -> Pairs:
    """Finds the samples of a packed dataset, one split after the other.

    They keep the order of the dataset's files.

    Args:
      labeled: False ignores all labels.

    Raises:
      DataError: if another dataset was packed, if a split is missing or incomplete, or if shards
        are missing.
    """
    _check_dataset(dataset, root)
    parts = [_samples_of_split(dataset, root, split, labeled) for split in splits]
    return Pairs(tuple(itertools.chain(*parts)))


def read_header(dataset: Dataset, decoded: bool) -> dict[str, Any]:
    """Returns the content of `packed.json` for a dataset."""
    layout = {
        "images": dataset.images,
        "image_suffix": dataset.image_suffix,
        "labels": list(dataset.labels),
        "label_suffixes": [form.suffix for form in dataset.label_formats],
    }
    return {"version": VERSION, "dataset": dataset.name, "decoded": decoded, "layout": layout}


def shard_names(count: int) -> list[str]:
    """Returns the file names of all shards of a split."""
    return [f"{index:05}-of-{count:05}.array_record" for index in range(count)]


def read_json(path: Path) -> dict[str, Any]:
    """Reads one of the JSON files.

    Raises:
      DataError: if the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _check_dataset(dataset, root):
    """Checks that a dataset can be read from these packed files.

    The same files may serve another dataset than the packed one, such as Mapillary's variants.
    """
    header = read_json(root / HEADER)
    if header.get("version") != VERSION:
        raise DataError(
            f"{root} is packed in version {header.get('version')} of the format; this jaxseg reads"
            f" version {VERSION}. Pack it again: {COMMAND}"
        )
    if header["dataset"] == dataset.name:
        return
    if header["layout"] != read_header(dataset, header["decoded"])["layout"]:
        raise DataError(
            f"{root} was packed from {header['dataset']}, whose files are not those of"
            f" {dataset.name}. Set data.dataset (data.val_dataset) to {header['dataset']}, or"
            " data.root (data.val_root) to another folder."
        )


def _samples_of_split(dataset, root, split, labeled):
    folder = root / split
    if not (folder / SAMPLES).is_file():
        there = sorted(path.parent.relative_to(root).as_posix() for path in root.rglob(SAMPLES))
        raise DataError(
            f"The split {split!r} is not in the packed dataset {root}, which has"
            f" {', '.join(there) or 'none'}. To add it: {COMMAND} --config FILE --output {root}"
            f" --splits {split}"
        )
    content = read_json(folder / SAMPLES)
    if not content["finished"]:
        raise DataError(
            f"The split {split!r} is packed in {root} only in part. Continue with the command that"
            f" began it: {COMMAND} --config FILE --output {root} …"
        )
    if (drawn_by := content.get("drawn_by")) and drawn_by != dataset.drawn_by:
        raise DataError(
            f"The labels in {folder} were drawn by other class names than those in"
            f" config.data.classes:\n{drawn_by}\nSet config.data.classes to these, or pack the"
            " dataset again."
        )
    shards = [folder / name for name in shard_names(len(content["shard_samples"]))]
    _check_sizes(shards, content["shard_bytes"])
    # Every sample's shard, and its place in that shard.
    places = [
        (shard, index)
        for shard, count in zip(shards, content["shard_samples"], strict=True)
        for index in range(count)
    ]
    formats = {form.suffix: form for form in dataset.label_formats}
    samples = []
    for entry, (shard, index) in zip(content["samples"], places, strict=True):
        image = Record(shard, 2 * index, entry["image"])
        label, form = image, None
        if labeled:
            label = Record(shard, 2 * index + 1, entry["label"])
            form = formats.get(entry["label_suffix"])
            if form is None:
                raise DataError(
                    f"{label} is a file of the kind *{entry['label_suffix']}, and labels of"
                    f" {dataset.name} are {' or '.join(f'*{suffix}' for suffix in formats)}"
                )
        samples.append(NamedSample(entry["name"], image, label, form))
    return samples


def _check_sizes(shards, sizes):
    """Checks the sizes of the shards.

    Otherwise a shard that was truncated in copying would be noticed only when it is read.
    """
    faults = []
    for shard, size in zip(shards, sizes, strict=True):
        found = shard.stat().st_size if shard.is_file() else None
        if found is None:
            faults.append(f"{shard} is missing")
        elif found != size:
            faults.append(f"{shard} has {found} bytes instead of {size}")
    if faults:
        raise DataError(
            f"{len(faults)} of {len(shards)} shards are not whole:{first_few(faults)}\n"
            f"Copy them again, or pack again, which replaces only these: {COMMAND}"
        )
