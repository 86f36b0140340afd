"""Packs a config's dataset into a few large ArrayRecord files.

    jaxseg pack --config configs/cityscapes.py --config.data.root=cityscapes \\
        --output packed/cityscapes

This helps where storage is slow with many small files. Training, evaluation and all other programs
then read the packed dataset with --config.data.root=packed/cityscapes. If packing was interrupted,
start it again with the same arguments, and it continues. A file that cannot be read stops the
packing: nothing is left out.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import rich.console
import rich.progress
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from ml_collections import ConfigDict

from jaxseg.atomic_files import replacing, write_text
from jaxseg.config import load_config
from jaxseg.data.annotations.drawn_label import DrawnLabel
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.decoding import arrays
from jaxseg.data.decoding.pictures import PictureFile, read_bytes, read_image, read_raw_label
from jaxseg.data.readers import packed
from jaxseg.data.samples import Sample, label_hw
from jaxseg.data.source import Source, evaluated_on, trained_on
from jaxseg.errors import ConfigError, CorruptFileError, DataError, exit_with_message

# Every record is a chunk of its own, so that reading one record does not read others. The records
# are not compressed: picture files already are, and decoded pictures should be read as fast as the
# storage allows.
WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_BYTES = 256 << 20
LEAST_SHARDS = 4
MEASURED = 32  # samples; the decoded size of the whole dataset is estimated from theirs
THREADS = 8


def sources(config: ConfigDict, splits: str | None) -> list[Source]:
    """Returns one source for every split to pack, all from the dataset that is trained on.

    Args:
      splits: the names of the splits, separated by commas. None takes the config's splits of
        training and of evaluation.

    Raises:
      ConfigError: if no splits are named, and training and evaluation read from different folders
        or datasets.
    """
    trained = trained_on(config.data)
    if splits is None:
        evaluated = evaluated_on(config.data)
        if (evaluated.dataset.name, evaluated.root) != (trained.dataset.name, trained.root):
            raise ConfigError(
                f"the config trains on {trained} and evaluates on {evaluated}: pack them one after"
                f" the other, first with --splits {','.join(_split_names(trained.split))}, then as"
                f" the training data of a config of {evaluated.dataset.name} with"
                f" --config.data.root={evaluated.root} and"
                f" --splits {','.join(_split_names(evaluated.split))}"
            )
        splits = f"{trained.split},{evaluated.split}"
    return [dataclasses.replace(trained, split=split) for split in _split_names(splits)]


def _split_names(text):
    return list(dict.fromkeys(re.split("[,+]", text)))


def pack(source: Source, output: Path, *, decoded: bool = False) -> None:
    """Packs one split into a folder below `output`.

    Complete shards from an earlier start with the same plan are kept.

    Args:
      decoded: True stores decoded pixels, False the picture files as they are.

    Raises:
      DataError: if the source is missing, incomplete or unreadable, or if `output` holds something
        else.
      OutputError: if a file cannot be written.
    """
    console = rich.console.Console(stderr=True)
    folder = output / source.split
    if not folder.resolve().is_relative_to(output.resolve()):
        raise DataError(f"The split {source.split!r} would be packed outside of {output}.")
    samples = source.samples()
    plan = _plan(source.dataset, samples, Path(source.root), decoded)
    names = packed.shard_names(len(plan["shard_samples"]))
    paths = [folder / name for name in names]
    _begin(output, packed.read_header(source.dataset, decoded), folder, plan)
    _say(console, source.summary())
    with _progress(console, len(samples)) as advance:
        start = 0
        for path, count in zip(paths, plan["shard_samples"], strict=True):
            part = samples[start : start + count]
            start += count
            if _is_whole(path, count):
                advance(count)
                _say(console, f"{path}: already packed")
            else:
                _write_shard(path, part, decoded, advance)
                _say(console, f"{path}: {count} samples")
    sizes = [path.stat().st_size for path in paths]
    # Written last, so that "finished" guarantees complete shards.
    _write_json(folder / packed.SAMPLES, plan | {"finished": True, "shard_bytes": sizes})


def _plan(dataset: Dataset, samples: Sequence[Sample], root: Path, decoded: bool) -> dict[str, Any]:
    """Returns what is packed, and how many samples each shard holds.

    The plan records the sizes of the files, so that a later start notices files that have changed.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = list(
            threads.map(lambda sample: (_size(sample.image), _size(sample.label)), samples)
        )
    entries = [
        {
            "name": sample.name,
            "image": _name(sample.image, root),
            "label": _name(sample.label, root),
            "label_suffix": sample.label_format and sample.label_format.suffix,
            "file_bytes": list(both),
        }
        for sample, both in zip(samples, sizes, strict=True)
    ]
    total = sum(
        image + (0 if isinstance(sample.label, DrawnLabel) else label)
        for sample, (image, label) in zip(samples, sizes, strict=True)
    )
    drawn = [sample for sample in samples if isinstance(sample.label, DrawnLabel)]
    if decoded or drawn:
        measured = samples[:: math.ceil(len(samples) / MEASURED)]
        pixels = sum(math.prod(label_hw(sample)) for sample in measured) * len(samples)
        total = 4 * pixels // len(measured) if decoded else total + pixels // len(measured)
    shards = min(max(LEAST_SHARDS, math.ceil(total / SHARD_BYTES)), len(samples))
    fewest, more = divmod(len(samples), shards)
    return {
        "samples": entries,
        "shard_samples": [fewest + (index < more) for index in range(shards)],
        "drawn_by": dataset.drawn_by if drawn else "",
    }


def _size(picture: PictureFile) -> int:
    if isinstance(picture, DrawnLabel):
        return sum(map(_size, picture.files))
    if isinstance(picture, Path) and picture.is_file():
        return picture.stat().st_size
    return len(read_bytes(picture))


def _name(picture: PictureFile, root: Path) -> str:
    """Returns a picture's path below the root, or its stem if it does not lie in its own file."""
    if isinstance(picture, Path):
        return picture.relative_to(root).as_posix()
    return picture.stem


def _begin(output: Path, header: dict[str, Any], folder: Path, plan: dict[str, Any]):
    """Writes the header and the plan, or checks that an earlier start wrote the same ones."""
    remedy = "Choose another --output, or delete its contents."
    if packed.is_packed(output):
        there = packed.read_json(output / packed.HEADER)
        if changed := [key for key in header if there.get(key) != header[key]]:
            was, now = ({key: kind[key] for key in changed} for kind in (there, header))
            raise DataError(f"{output} was packed with {was}, which would now be {now}. {remedy}")
    elif output.exists() and any(output.iterdir()):
        raise DataError(f"{output} holds files, but no packed dataset. {remedy}")
    else:
        _write_json(output / packed.HEADER, header)
    path = folder / packed.SAMPLES
    if not path.exists():
        _write_json(path, plan | {"finished": False})
    elif any(packed.read_json(path).get(key, "") != plan[key] for key in plan):
        raise DataError(
            f"{folder} was packed from files or by class names that have changed since. {remedy}"
        )


def _is_whole(shard: Path, samples: int) -> bool:
    return ArrayRecordReader(str(shard)).num_records() == 2 * samples


def _write_shard(path: Path, samples: Sequence[Sample], decoded: bool, advance: Callable):
    with replacing(path) as partial:
        writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for records in _records(samples, decoded):
                for record in records:
                    writer.write(record)
                advance(1)
            writer.close()
        except RuntimeError as error:  # raised by the writer
            raise OSError(str(error)) from error


def _records(samples: Sequence[Sample], decoded: bool) -> Iterator[tuple[bytes, bytes]]:
    """Returns the records (image, label) of each sample, read ahead by threads."""

    def read(sample):
        try:
            if decoded:
                pixels = read_image(sample.image), read_raw_label(sample.label)
                return tuple(map(arrays.to_bytes, pixels))
            return read_bytes(sample.image), read_bytes(sample.label)
        except CorruptFileError as error:
            raise CorruptFileError(
                f"{error}; packing leaves nothing out: restore the file, or remove it together"
                " with its label or image"
            ) from error

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
    return iter(grain.MapDataset.source(samples).map(read).to_iter_dataset(options))


def _write_json(path: Path, content: dict[str, Any]):
    write_text(path, json.dumps(content) + "\n")


def _say(console, text):
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _progress(console, total):
    """Yields a function that counts packed samples, and shows a progress bar on a terminal."""
    columns = (
        rich.progress.BarColumn(bar_width=None),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    disable = not console.is_interactive
    with rich.progress.Progress(*columns, console=console, disable=disable, expand=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxseg pack",
        description=__doc__,
        epilog="Settings of the config can be changed: --config.KEY=VALUE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE:VARIANT", required=True)
    parser.add_argument("--output", type=Path, required=True, help="a folder of its own")
    parser.add_argument(
        "--splits", help="separated by commas; default: the splits of training and evaluation"
    )
    parser.add_argument(
        "--decoded", action="store_true", help="pixels, not files: larger, but nothing to decode"
    )
    options, overrides = parser.parse_known_args(arguments)
    with exit_with_message("jaxseg pack"):
        config = load_config(options.config, overrides)
        for source in sources(config, options.splits):
            pack(source, options.output, decoded=options.decoded)
    print(f"Packed. Read it with --config.data.root={options.output}")


if __name__ == "__main__":
    main()
