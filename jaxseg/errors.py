"""Errors meant for the user: what was wrong, where, and what to do about it.

The command-line programs print their message without a traceback and exit with status 1; any other
exception is a fault of jaxseg's own and keeps its traceback. All are also a `ValueError`, so that
callers of the library need not know these names.
"""

from collections.abc import Sequence


class JaxsegError(ValueError):
    """Something outside the code is wrong: the configuration, the data or a file."""


class ConfigError(JaxsegError):
    """A setting is unknown, of the wrong kind, or does not go with another."""


class DataError(JaxsegError):
    """A dataset is missing, incomplete or inconsistent."""


class CorruptFileError(DataError):
    """One file of a dataset cannot be read; the others may be sound."""


class CheckpointError(JaxsegError):
    """A checkpoint is missing, damaged, or belongs to another model."""


def first_few(lines: Sequence[object], limit: int = 5) -> str:
    """A line each for the first, and one for how many there are besides."""
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    return shown + (f"\n  and {len(lines) - limit} more" if len(lines) > limit else "")
