"""Compares runs in one page, for a browser.

python -m jaxseg.report RUN [RUN ...] [--published NAME] [--out report.html]
"""

import argparse
import pathlib
import shlex
from collections.abc import Sequence

from jaxseg.errors import exit_with_message


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg report",
        description="Compares runs in one page: curves, scores with intervals, confusions, worst"
        " and best images, settings, versions. The page needs no other file and no network.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=_run,
        metavar="RUN",
        help="a work directory, or a .log.json of mmsegmentation 0.x; the others are compared with"
        " the first",
    )
    parser.add_argument(
        "--published", metavar="NAME", help="a published model to show beside them (jaxseg zoo)"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FILE",
        default=pathlib.Path("report.html"),
        help="the page to write; default report.html",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=6,
        metavar="N",
        help="worst and best images of each run, N each; default 6",
    )
    options = parser.parse_args(arguments)
    if options.pictures < 0:
        parser.error("--pictures must not be negative")
    with exit_with_message("jaxseg report"):
        write_report(options.runs, options.out, options.published, options.pictures)


def _run(text: str) -> pathlib.Path:
    if text.startswith("gs://"):
        raise argparse.ArgumentTypeError(
            f"{text} is in a bucket; copy it to this machine first: gcloud storage cp --recursive"
            f" {shlex.quote(text)} ."
        )
    return pathlib.Path(text)


def write_report(
    paths: Sequence[pathlib.Path], out: pathlib.Path, published: str | None, pictures: int
):
    """Reads runs, and writes the page that compares them.

    Args:
      paths: work directories, and logs of mmsegmentation.
      out: the file to write.
      published: the name of a published model, or None.
      pictures: how many of the worst, and of the best, images of each run to show.

    Raises:
      RunError: if a run cannot be read.
      ConfigError: if there is no published model of this name.
      OutputError: if the page cannot be written.
    """
    # Not for --help, which is instant.
    from jaxseg.atomic_files import write_text
    from jaxseg.report.mmseg_log import is_mmseg_log, read_mmseg_log
    from jaxseg.report.page import make_page
    from jaxseg.report.run import short_names
    from jaxseg.report.workdir import read_workdir
    from jaxseg.zoo.catalogue import find_model

    model = find_model(published) if published else None
    runs = [
        read_mmseg_log(name, path) if is_mmseg_log(path) else read_workdir(name, path)
        for name, path in zip(short_names(paths), paths, strict=True)
    ]
    page, notes = make_page(runs, model, pictures)
    write_text(out, page)
    for note in notes:
        print(f"note: {note}")
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{out}: {count}, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
