"""Segments images from the command line.

    jaxseg predict --model NAME|FILE|RUN --out DIR IMAGE|FOLDER ...

NAME_classes.png holds the class of every pixel, NAME_overlay.png shows the classes over the image.
"""

import argparse
import contextlib
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
from jaxseg.distributed import start
from jaxseg.errors import DataError, exit_with_message, first_few
from jaxseg.reporting import visualize
from jaxseg.segmenter import Segmentation, Segmenter, open_picture

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
    segmenter: Segmenter, images: Sequence[Input], out: pathlib.Path, warm_up: bool = False
):
    """Writes NAME_classes.png and NAME_overlay.png for every image, and prints a line for each.

    Images are read and written by threads while the devices compute. An image that cannot be read
    does not end the others.

    Args:
      segmenter: the trained model.
      images: the images.
      out: the folder for the results.
      warm_up: compile everything before the first image.

    Raises:
      DataError: at the end, if images could not be read, with their names.
      OutputError: if a result cannot be written.
    """
    if numbered := visualize.numbered_names(segmenter.dataset.classes):
        write_text(out / "legend.txt", "".join(f"{line}\n" for line in numbered))
        print(f"no font here can draw all class names; {out / 'legend.txt'} lists them by number")
    if warm_up:
        _warm_up(segmenter, images)

    unreadable: list[DataError] = []
    read: deque[Input] = deque()  # and not segmented yet

    def pixels():
        for image, found in _read_ahead(images):
            if isinstance(found, DataError):
                unreadable.append(found)
                print(found)
            else:
                read.append(image)
                yield found

    def write(image: Input, result: Segmentation) -> str:
        files = result.save(out / image.name)
        largest = [f"{name} {share:.0%}" for name, share in list(result.shares().items())[:3]]
        return f"{image.file} -> {', '.join(map(str, files))}  ({', '.join(largest)})"

    console = rich.console.Console(stderr=True)
    bar = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar, ThreadPoolExecutor(4) as pool:
        task, written = bar.add_task("segmenting", total=len(images)), deque()
        for result in segmenter.stream(pixels()):
            written.append(pool.submit(write, read.popleft(), result))
            while written and (written[0].done() or len(written) > AHEAD):
                print(written.popleft().result(), flush=True)
                bar.advance(task)
        for line in written:
            print(line.result(), flush=True)
            bar.advance(task)
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(images)} images were not segmented:"
            f"{first_few(unreadable, len(unreadable))}"
        )


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
    pretrained.add_arguments(parser)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results")
    parser.add_argument(
        "--warmup", action="store_true", help="compile for all images before the first one is due"
    )
    parser.add_argument("inputs", nargs="+", metavar="IMAGE|FOLDER")
    options = parser.parse_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg predict"):
        start.use_compile_cache()
        start.check_platform()
        images, skipped = find_images(options.inputs)
        for line in picture_files.describe(skipped):
            print(line)
        devices = jax.local_devices()[: len(images)]
        segmenter = Segmenter.from_pretrained(options.model, options.config, devices)
        predict_files(segmenter, images, options.out, options.warmup)


if __name__ == "__main__":
    main()
