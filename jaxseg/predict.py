"""Segments images, or the frames of a video, from the command line.

    jaxseg predict --model NAME|FILE|RUN --out DIR IMAGE|FOLDER ...
    jaxseg predict --model NAME|FILE|RUN --out OUT.mp4 --video IN.mp4

Formats (--format, which may be given several times; by default png and overlay):
  png       NAME_classes.png: the class of every pixel
  overlay   NAME_overlay.png: the classes in color over the image, with a legend
  color     NAME_color.png: the classes in color
  npz       NAME.npz: arrays of NumPy, with --probabilities also the class probabilities
  rle       predictions.json: run lengths of all images, which pycocotools reads
  panoptic  panoptic/NAME.png and panoptic.json, which panopticapi reads
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import rich.console
import rich.progress
from jaxtyping import UInt8

from jaxseg import configure_cpu, pretrained
from jaxseg.atomic_files import write_text
from jaxseg.data import picture_files
from jaxseg.data.decoding import pictures
from jaxseg.data.decoding.any_picture import open_picture
from jaxseg.distributed import start
from jaxseg.errors import ConfigError, DataError, exit_with_message, first_few
from jaxseg.inference.segments import Segments
from jaxseg.predictions import formats, video
from jaxseg.predictions.palette import read_palette
from jaxseg.reporting import visualize
from jaxseg.segmentation import Segmentation
from jaxseg.segmenter import Segmenter

AHEAD = 8  # images that are read, or written, beside those on the devices


class Input(NamedTuple):
    """An image to segment.

    Attributes:
      file: the image file.
      name: the path of its results below the output folder, without suffix.
    """

    file: pathlib.Path
    name: pathlib.Path


def find_images(inputs: Sequence[str]) -> tuple[list[Input], list[picture_files.Skipped]]:
    """Lists the given files, and all images in the given folders.

    Returns:
      The images, and what was not taken of the folders.

    Raises:
      DataError: for a missing file, a folder without images, or two images of the same name.
    """
    found: dict[pathlib.Path, pathlib.Path] = {}
    skipped = []
    for given in map(pathlib.Path, inputs):
        if given.is_dir():
            listed = picture_files.find_some(given)
            skipped += listed.skipped
            names = list(map(pathlib.Path, listed.names))
            images = [given / name for name in names]
        elif given.is_file():
            images, names = [given], [pathlib.Path(given.name)]
        else:
            found_there = "is not a regular file" if given.exists() else "does not exist"
            raise DataError(f"{given} {found_there}")
        for image, name in zip(images, names, strict=True):
            name = name.with_suffix("")
            if name in found:
                raise DataError(
                    f"{found[name]} and {image} would both be written as {name}; predict them into"
                    " different --out folders"
                )
            found[name] = image
    return [Input(image, name) for name, image in found.items()], skipped


def predict_files(
    segmenter: Segmenter,
    images: Sequence[Input],
    out: pathlib.Path,
    warm_up: bool = False,
    *,
    written: Sequence[str] = formats.DEFAULT,
    alpha: float = 0.5,
    probabilities: bool = False,
):
    """Writes the results of every image, and prints a line for each.

    Images are read and written by threads while the devices compute. An image that cannot be read
    does not end the others.

    Args:
      segmenter: the trained model.
      images: the images.
      out: the folder for the results.
      warm_up: compile everything before the first image.
      written: the formats of the results (`jaxseg.predictions.formats`).
      alpha: the opacity of the colors of overlays, from 0 to 1.
      probabilities: whether the formats get the class probabilities too.

    Raises:
      DataError: at the end, if images could not be read, with their names.
      OutputError: if a result cannot be written.
    """
    look = formats.Look(segmenter.dataset.classes, segmenter.dataset.palette, alpha)
    writers = formats.make_writers(written, out, look)
    numbered = visualize.numbered_names(look.names) if "overlay" in written else []
    if numbered:
        write_text(out / "legend.txt", "".join(f"{line}\n" for line in numbered))
        print(f"no font here can draw all class names; {out / 'legend.txt'} lists them by number")
    if warm_up:
        _warm_up(segmenter, images)
    with_segments = segmenter.has_segments and not formats.OF_REGIONS.isdisjoint(written)
    ahead = 1 if probabilities else AHEAD  # results may wait to be written; these are large

    unreadable: list[DataError] = []
    read: deque[formats.Entry] = deque()  # and not segmented yet

    def pixels():
        for number, (image, found) in enumerate(_read_ahead(images)):
            if isinstance(found, DataError):
                unreadable.append(found)
                print(found)
            else:
                file_name = (image.name.parent / image.file.name).as_posix()
                read.append(formats.Entry(number, image.name, file_name))
                yield found

    def write(entry: formats.Entry, result: Segmentation, segments: Segments | None) -> str:
        scores = result.probabilities() if probabilities else None
        prediction = formats.Prediction(result.image, result.classes, scores, segments)
        files = [writer.write(entry, prediction) for writer in writers]
        largest = [f"{name} {share:.0%}" for name, share in list(result.shares().items())[:3]]
        file = images[entry.number].file
        return f"{file} -> {', '.join(map(str, files))}  ({', '.join(largest)})"

    with _progress() as bar, ThreadPoolExecutor(4) as pool:
        task, waiting = bar.add_task("segmenting", total=len(images)), deque()
        for result in segmenter.stream(pixels(), probabilities=probabilities):
            segments = result.segments() if with_segments else None
            waiting.append(pool.submit(write, read.popleft(), result, segments))
            while waiting and (waiting[0].done() or len(waiting) > ahead):
                print(waiting.popleft().result(), flush=True)
                bar.advance(task)
        for line in waiting:
            print(line.result(), flush=True)
            bar.advance(task)
    for writer in writers:
        writer.finish()
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(images)} images were not segmented:"
            f"{first_few(unreadable, len(unreadable))}"
        )


def predict_video(
    segmenter: Segmenter, file: pathlib.Path, out: pathlib.Path, alpha: float = 0.5, every: int = 1
) -> int:
    """Writes a video with the classes in color over every frame.

    The new video has the same size, frame rate and number of frames, and no sound.

    Args:
      segmenter: the trained model.
      file: the video.
      out: the new video, which ends with .mp4.
      alpha: the opacity of the colors, from 0 to 1.
      every: segments the first of so many frames. The others get its classes.

    Returns:
      The number of frames.

    Raises:
      ConfigError: for another suffix, or if `out` is `file`.
      DataError: if the video cannot be read. Then nothing is written.
      OutputError: if the new video cannot be written.
    """
    if out.exists() and file.exists() and out.samefile(file):
        raise ConfigError(f"--out {out} would replace the video itself; choose another name")
    palette, count = segmenter.dataset.palette, 0
    waiting: deque[list] = deque()  # frames that follow one that is being segmented, and that one

    def draw(group, classes):
        for frame in group:
            write(visualize.overlay(frame, classes, palette, alpha))
        return len(group)

    def segmented():
        for group in _read_in_thread(reader, _groups(film.frames, every)):
            waiting.append(group)
            yield group[0]

    # The threads end before the files that they read and write are closed.
    with (
        video.reading(file) as film,
        video.writing(out, film.hw, film.rate) as write,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
        _progress() as bar,
    ):
        task, drawn = bar.add_task("segmenting", total=film.count or None), deque()
        for result in segmenter.stream(segmented()):
            drawn.append(writer.submit(draw, waiting.popleft(), result.classes))
            while drawn and (drawn[0].done() or len(drawn) > 2):
                count += drawn.popleft().result()
                bar.update(task, completed=count)
        count += sum(group.result() for group in drawn)
    rate, size = float(film.rate), "x".join(map(str, film.hw[::-1]))
    print(f"{file} -> {out}  ({count} frames of {size} pixels, {rate:g} a second)")
    return count


def _progress():
    """Returns a progress bar that only a terminal shows."""
    console = rich.console.Console(stderr=True)
    return rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)


def _groups(items, size):
    """Yields lists of `size` items, the last of which may be shorter."""
    while group := list(itertools.islice(items, size)):
        yield group


def _read_in_thread(pool, items):
    """Yields the items of an iterator. The pool, of one thread, reads the next two meanwhile."""
    end = object()
    ahead = deque(pool.submit(next, items, end) for _ in range(2))
    while (item := ahead.popleft().result()) is not end:
        ahead.append(pool.submit(next, items, end))
        yield item


def _read_ahead(
    images: Sequence[Input],
) -> Iterator[tuple[Input, UInt8[np.ndarray, "_ _ 3"] | DataError]]:
    """Yields each image with its pixels, or with the reason why it cannot be read."""

    def read(image: Input):
        try:
            return open_picture(image.file)
        except DataError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        waiting = deque()
        for image in images:
            waiting.append((image, pool.submit(read, image)))
            if len(waiting) > AHEAD:
                image, pixels = waiting.popleft()
                yield image, pixels.result()
        for image, pixels in waiting:
            yield image, pixels.result()


def _warm_up(segmenter, images):
    """Compiles what the images need. Those that cannot be read are reported when they are due."""
    sizes, begin = set(), time.monotonic()
    for image in images:
        with contextlib.suppress(DataError):
            sizes.add(pictures.image_hw(image.file))
    programs = segmenter.warm_up(sorted(sizes))
    seconds = time.monotonic() - begin
    print(f"{programs} programs for {len(sizes)} image sizes, ready after {seconds:.0f} s")


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pretrained.add_arguments(parser, several=True)
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, help="folder for the results, or OUT.mp4"
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=tuple(formats.FORMATS),
        help="what is written of images; may be given several times",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write class probabilities to NAME.npz"
    )
    parser.add_argument(
        "--palette", type=pathlib.Path, metavar="FILE", help="a file of class colors, as #rrggbb"
    )
    parser.add_argument(
        "--alpha", type=_opacity, default=0.5, help="opacity of the colors, from 0 to 1"
    )
    parser.add_argument("--video", type=pathlib.Path, metavar="IN.mp4", help="segment a video")
    parser.add_argument(
        "--every", type=_positive, metavar="N", help="of a video, segment every Nth frame only"
    )
    parser.add_argument(
        "--warmup", action="store_true", help="compile for all images before the first one is due"
    )
    parser.add_argument("inputs", nargs="*", metavar="IMAGE|FOLDER")
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    configure_cpu()
    with exit_with_message("jaxseg predict"):
        start.use_compile_cache()
        start.check_platform()
        images, skipped = [], []
        if not options.video:
            images, skipped = find_images(options.inputs)
        for line in picture_files.describe(skipped):
            print(line)
        devices = jax.local_devices()[: None if options.video else len(images)]
        models = pretrained.split_names(options.model)
        segmenter = Segmenter.from_pretrained(models, options.config, devices)
        if options.palette:
            dataset = segmenter.dataset
            palette = read_palette(options.palette, dataset.classes, dataset.palette)
            segmenter.dataset = dataclasses.replace(dataset, palette=palette)
        if options.video:
            predict_video(segmenter, options.video, options.out, options.alpha, options.every or 1)
        else:
            predict_files(
                segmenter,
                images,
                options.out,
                options.warmup,
                written=options.format or formats.DEFAULT,
                alpha=options.alpha,
                probabilities=options.probabilities,
            )


def _check_options(parser, options):
    """Ends the program with a message if options do not go together."""
    if options.video:
        if options.inputs:
            parser.error("--video takes no images; segment them in a call of their own")
        if options.format or options.probabilities or options.warmup:
            parser.error("--format, --probabilities and --warmup are for images, not for --video")
    elif not options.inputs:
        parser.error("images or folders are needed, or --video IN.mp4")
    elif options.every:
        parser.error("--every needs --video")
    if options.probabilities and "npz" not in (options.format or ()):
        parser.error("--probabilities needs --format npz, which holds them")


def _opacity(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


if __name__ == "__main__":
    main()
