"""Prints docs/reference/cli.md: what every command prints for --help."""

import contextlib
import importlib
import io
import os
import re

from jaxseg.__main__ import COMMANDS, usage
from jaxseg.main import FLAGS, MODES

HEAD = """\
# Command lines

`jaxseg` is one name for all programs. `python -m jaxseg` is the same. Each program can also be
started by its module, as in `python -m jaxseg.main --config FILE`.

This page is generated from what the programs print for `--help`.
"""


def help_text(module: str) -> str:
    """Returns what the `main` of a module prints for --help, 100 characters wide."""
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return printed.getvalue().strip()


def main_flags() -> str:
    """Returns the flags of jaxseg.main, which absl parses."""
    flags = FLAGS.flags_by_module_dict()["jaxseg.main"]
    rows = [f"  --{flag.name:<12} {re.sub(' +', ' ', flag.help)}" for flag in flags]
    return "\n".join(sorted(rows))


def page() -> str:
    """Returns the whole page."""
    parts = [HEAD, f"```text\n{usage()}\n```\n"]
    parts.append(
        "## train, eval, show, compile\n\n`jaxseg MODE` is `python -m jaxseg.main --mode MODE`.\n"
    )
    parts += [f"- `{mode}`: {text}." for mode, text in MODES.items()]
    parts.append(f"\n```text\n{main_flags()}\n```\n")
    for name, command in COMMANDS.items():
        if command.module != "jaxseg.main":
            parts.append(f"## {name}\n\n```text\n{help_text(command.module)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
