"""Packed datasets: splits as shards of ArrayRecord files, written by `jaxseg.data.pack`.

    packed.json                       of which dataset, and whether its pictures are decoded
    SPLIT/samples.json                the samples; says whether the shards are all there
    SPLIT/00000-of-00012.array_record

Record 2i of a shard is the image of its sample i, record 2i + 1 the label: the file as it was, or
what it decodes to in the form of `jaxseg.data.decoding.arrays`. Labels keep their raw values, so
that one packed folder serves every dataset that is read from the same files.
"""

import functools
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from jaxseg.data.datasets.description import Dataset
from jaxseg.data.samples import Pairs, Sample
from jaxseg.errors import DataError, first_few

VERSION = 1
HEADER = "packed.json"
SAMPLES = "samples.json"
COMMAND = "python -m jaxseg.data.pack"
# No reading ahead, no threads: records are read one by one, also in processes that were forked.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
OPEN_SHARDS = 512  # per process, below the usual limit of 1024 files


@dataclass(frozen=True)
class Record:
    """A record of a shard, as the `Picture` that it was made of.

    file: that picture's path below the root of its dataset.
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

    def open(self, mode: str) -> BinaryIO:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return f"{self.file} (record {self.index} of {self.shard})"


@functools.lru_cache(OPEN_SHARDS)
def _reader(shard):
    # Here, since there is no array_record for Windows.
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(shard), options=READER_OPTIONS, file_reader_buffer_size=1 << 15)


def is_packed(root: Path) -> bool:
    return (root / HEADER).is_file()


def pairs(dataset: Dataset, root: Path, splits: Sequence[str], *, labeled: bool) -> Pairs:
    """The samples of a packed dataset, one split after the other, in the order of its files.

    labeled: False leaves labels aside.

    Raises:
      DataError: where another dataset was packed, a split was not, or not to its end, or where
        shards are missing.
    """
    _check_dataset(dataset, root)
    parts = [_samples_of_split(dataset, root, split, labeled) for split in splits]
    return Pairs(tuple(itertools.chain(*parts)), (), ())


def read_header(dataset: Dataset, decoded: bool) -> dict[str, Any]:
    """What `packed.json` says of a dataset."""
    layout = {
        "images": dataset.images,
        "image_suffix": dataset.image_suffix,
        "labels": list(dataset.labels),
        "label_suffixes": [form.suffix for form in dataset.label_formats],
    }
    return {"version": VERSION, "dataset": dataset.name, "decoded": decoded, "layout": layout}


def shard_names(count: int) -> list[str]:
    return [f"{index:05}-of-{count:05}.array_record" for index in range(count)]


def read_json(path: Path) -> dict[str, Any]:
    """What one of the JSON files says. Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _check_dataset(dataset, root):
    """Labels of the same files may be read as another dataset, such as Mapillary's three."""
    header = read_json(root / HEADER)
    if header.get("version") != VERSION:
        raise DataError(
            f"{root} is packed in version {header.get('version')} of the form; this jaxseg reads"
            f" version {VERSION}. Pack it anew: {COMMAND}"
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
            f"The split {split!r} is packed in {root} only in part. Go on with the command that"
            f" began it: {COMMAND} --config FILE --output {root} …"
        )
    shards = [folder / name for name in shard_names(len(content["shard_samples"]))]
    _check_sizes(shards, content["shard_bytes"])
    # Every sample's shard and its place in it.
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
        samples.append(Sample(entry["name"], image, label, form))
    return samples


def _check_sizes(shards, sizes):
    """A shard that was cut off in copying would be found out only when it is read."""
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
