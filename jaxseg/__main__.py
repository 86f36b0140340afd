"""The command `jaxseg`: one name for every program of the project."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from jaxseg import siblings


class Command(NamedTuple):
    """A program: the module whose `main` runs, what it does, and arguments that it always gets."""

    module: str
    summary: str
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("jaxseg.main", "train a recipe, or resume a run", ("--mode=train",)),
    "eval": Command("jaxseg.main", "evaluate a run or a checkpoint", ("--mode=eval",)),
    "show": Command("jaxseg.main", "print a config, its model and its data", ("--mode=show",)),
    "compile": Command(
        "jaxseg.main", "report memory and time on devices that you do not have", ("--mode=compile",)
    ),
    "predict": Command("jaxseg.predict", "segment images"),
    "serve": Command("jaxseg.serve.__main__", "try a model on a page, and answer programs"),
    "report": Command("jaxseg.report.__main__", "compare runs in one page"),
    "export": Command("jaxseg.export", "write a model as one file that runs without jaxseg"),
    "zoo": Command("jaxseg.zoo.__main__", "list the published models"),
    "convert": Command("converters.convert", "convert a PyTorch checkpoint"),
    "export-torch": Command("converters.export_torch", "write a checkpoint for PyTorch"),
    "adapter": Command("converters.adapter", "write what a run trained, or apply it"),
    "verify": Command("converters.verify", "compare outputs with recorded ones"),
    "pack": Command("jaxseg.data.pack", "pack a dataset into a few large files"),
    "synth": Command("jaxseg.data.synthetic.__main__", "paint street scenes to try training on"),
    "bench": Command("jaxseg.bench.__main__", "measure a recipe or the kernels on this device"),
    "selftest": Command("jaxseg.selftest.__main__", "check the numbers on the device at hand"),
}


def usage() -> str:
    """The list of commands."""
    rows = [f"  {name:<13} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: jaxseg COMMAND [ARGUMENTS]", "", *rows, "", "jaxseg COMMAND --help says more."]
    )


def main(arguments: Sequence[str] | None = None):
    """Runs the command that the first argument names, with the others."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(importlib.import_module("importlib.metadata").version("jaxseg"))
        return
    if name not in COMMANDS:
        sys.exit(f"jaxseg: no command {name!r}\n\n{usage()}")
    command = COMMANDS[name]
    package = command.module.partition(".")[0]
    if package != "jaxseg":
        siblings.claim(package)
    try:
        importlib.import_module(command.module).main([*command.arguments, *rest])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
