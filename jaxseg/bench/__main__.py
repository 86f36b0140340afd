"""Measures a recipe on the devices at hand, or the kernels alone.

    jaxseg bench train|infer|data --config FILE[:VARIANT] [--json FILE] [--config.KEY=VALUE …]
    jaxseg bench table FILE …
    jaxseg bench kernels …

`train` times the train step that `jaxseg train` compiles, and `infer` the forward pass of a batch,
with random images that stay on the devices. Both report images per second, the median and the 95th
percentile of the times, peak memory, compile time and MFU. `data` times the input pipeline, from
files to batches. `table` makes a Markdown table of the files that `--json` writes. `kernels` times
the kernels alone; `jaxseg bench kernels --help` lists its options.
"""

import argparse
import importlib
import math
import pathlib
import sys
from collections.abc import Sequence

from jaxseg import configure_cpu, siblings
from jaxseg.errors import ConfigError, exit_with_message

PATHS = ("data.root=", "data.val_root=")  # settings that name no part of the measurement
WHAT = {
    "train": "times the train step",
    "infer": "times the forward pass",
    "data": "times the input pipeline",
    "table": "prints a Markdown table of the files that --json has written",
    "kernels": "times the kernels",
}


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser. The options of `kernels` are those of `pallas_kernels.bench`."""
    parser = argparse.ArgumentParser(
        prog="jaxseg bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for what, summary in WHAT.items():
        command = commands.add_parser(
            what,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        if what in ("train", "infer", "data"):
            add_options(command, what)
        elif what == "table":
            command.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE")
    return parser


def add_options(command: argparse.ArgumentParser, what: str):
    """Adds the options of `train`, `infer` or `data`."""
    add = command.add_argument
    add(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="the recipe; --config.KEY=VALUE changes a setting",
    )
    if what == "data":
        add("--batch", type=_positive, metavar="N", help="images in a batch; default: the recipe's")
    else:
        add(
            "--batch",
            type=_whole,
            metavar="N",
            help="images per device; default: the recipe's; 0: the largest of 8, 16, … that fits",
        )
    add("--steps", type=_positive, default=20, metavar="N", help="steps to time; default: 20")
    add("--warmup", type=_whole, default=3, metavar="N", help="steps before these; default: 3")
    if what == "data":
        add(
            "--step-seconds",
            type=_duration,
            default=0.0,
            metavar="SECONDS",
            help="hold each batch as long as a train step does, and report the share of waiting",
        )
    else:
        add("--dtype", choices=("bfloat16", "float32"), help="default: the recipe's")
    add("--json", type=pathlib.Path, metavar="FILE", help="also write the result to this file")


def _whole(text):
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def _positive(text):
    if (number := _whole(text)) == 0:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _duration(text):
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return seconds


def measure(options: argparse.Namespace, settings: Sequence[str]):
    """Measures what the options ask for, prints the result and writes it.

    Args:
      options: the parsed options.
      settings: arguments of the form --config.KEY=VALUE.

    Raises:
      JaxsegError: if the config, the data or the batch does not fit.
    """
    import jax

    from jaxseg.atomic_files import write_text
    from jaxseg.bench import pipeline, steps
    from jaxseg.config import load_config
    from jaxseg.distributed import processes, start
    from jaxseg.reporting.manifest import strict_json

    config = load_config(options.config, settings)
    file = pathlib.Path(options.config.partition(":")[0])
    changes = [argument.removeprefix("--config.") for argument in settings]
    given = {
        "recipe": f"{file.stem}:{config.variant}",
        "overrides": [change for change in changes if not change.startswith(PATHS)],
        "warmup": options.warmup,
        "steps": options.steps,
    }
    if options.what == "data":
        found = pipeline.measure_pipeline(
            config, batch=options.batch, step_seconds=options.step_seconds, **given
        )
    else:
        if options.dtype:
            config.model.dtype = options.dtype
        processes.start(preemptible=False)
        start.check_platform()
        subject = steps.Subject(what=options.what, config=config, **given)
        with processes.ending_together(lambda: f"bench {options.what}"):
            if options.batch == 0:
                found = steps.measure_largest(subject)
            else:
                found = steps.measure_step(subject, options.batch)
        if jax.process_index() != 0:
            return
    print(found.text())
    if options.json:
        write_text(options.json, strict_json(found.as_json(), indent=1) + "\n")


def main(arguments: Sequence[str] | None = None):
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["kernels"]:
        siblings.claim("pallas_kernels")
        importlib.import_module("pallas_kernels.bench").main(arguments[1:])
        return
    options, settings = make_parser().parse_known_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg bench"):
        if options.what == "table":
            from jaxseg.bench import table

            if settings:
                raise ConfigError(f"unexpected argument {settings[0]!r}; `table` takes files alone")
            print(table.markdown_table([table.read_measurement(file) for file in options.files]))
        else:
            measure(options, settings)


if __name__ == "__main__":
    main()
