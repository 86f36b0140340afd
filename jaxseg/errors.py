"""Defines the errors meant for the user.

Their messages say what was wrong, where, and what to do about it. The command-line programs print
the message without a traceback and exit with status 1. Any other exception is a bug in jaxseg and
keeps its traceback. All these errors are also a `ValueError`, so callers of the library need not
know their names.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence

HELP = "docs/guides/troubleshooting.md"


class JaxsegError(ValueError):
    """Something outside the code is wrong: the config, the data or a file."""


class ConfigError(JaxsegError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class DataError(JaxsegError):
    """A dataset is missing, incomplete or inconsistent."""


class CorruptFileError(DataError):
    """One file of a dataset cannot be read, while the others may be intact."""


class OutputError(JaxsegError):
    """A result cannot be written: the disk is full or read-only, or permission is missing."""


class CheckpointError(JaxsegError):
    """A checkpoint is missing, damaged, or belongs to another model."""


def first_few(lines: Sequence[object], limit: int = 5) -> str:
    """Lists the first items for a message, one per line, and counts the rest in a last line."""
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    return shown + (f"\n  and {len(lines) - limit} more" if len(lines) > limit else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


@contextlib.contextmanager
def exit_with_message(program: str) -> Iterator[None]:
    """Ends the program with the message of a JaxsegError, without a traceback, and status 1.

    The message ends with the page of the docs that explains messages.
    """
    try:
        yield
    except JaxsegError as error:
        sys.exit(f"{program}: {error}\n({HELP} lists messages with their remedies)")
