"""Prints docs/reference/cli.md: what every command prints for --help."""

import contextlib
import importlib
import io
import os

from jaxseg.__main__ import COMMANDS, usage

HEAD = """\
# Command lines

`jaxseg` is one name for all programs. `python -m jaxseg` is the same. Each program can also be
started by its module, as in `python -m jaxseg.main --config FILE`.

This page is generated from what the programs print for `--help`.
"""

# The commands of a command that have a help of their own.
SUBCOMMANDS = {"bench": ("train", "infer", "data", "table", "kernels")}


def help_text(module: str, *words: str) -> str:
    """Returns what the `main` of a module prints for `words` --help, 100 characters wide."""
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*words, "--help"])
    return printed.getvalue().strip()


def page() -> str:
    """Returns the whole page."""
    parts = [HEAD, f"```text\n{usage()}\n```\n"]
    parts.append("## train, eval, show, compile\n")
    parts.append("`jaxseg MODE` is `python -m jaxseg.main --mode MODE`.\n")
    parts.append(f"```text\n{help_text('jaxseg.main')}\n```\n")
    for name, command in COMMANDS.items():
        if command.module != "jaxseg.main":
            parts.append(f"## {name}\n\n```text\n{help_text(command.module)}\n```\n")
        for word in SUBCOMMANDS.get(name, ()):
            text = help_text(command.module, word)
            parts.append(f"### {name} {word}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
