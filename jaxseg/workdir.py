"""Work directories: folders of this machine, and folders in buckets of Google Cloud (gs://).

Files for a bucket are written into a temporary folder and copied from there. Only checkpoints go to
the bucket directly, by Orbax.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from absl import logging
from etils import epath

from jaxseg.errors import OutputError, first_line

BUCKET = "gs://"
CHECKPOINTS = "checkpoints"

AnyPath = pathlib.Path | epath.Path


def in_bucket(path: str | os.PathLike) -> bool:
    """Returns whether a path names something in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def any_path(path: str | os.PathLike) -> AnyPath:
    """Returns a path in a bucket for gs://BUCKET/PATH, else an absolute one of this machine."""
    return epath.Path(path) if in_bucket(path) else pathlib.Path(path).absolute()


class WorkDirectory:
    """A work directory; a context manager that copies what is not copied yet at its end.

    Attributes:
      path: the directory, for messages.
      folder: where files are written: the directory, or a temporary folder if it is in a bucket.
      checkpoints: where checkpoints are.
    """

    def __init__(self, path: str | os.PathLike):
        self._stack = contextlib.ExitStack()
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}  # size and time of what was copied
        self.path: AnyPath
        if in_bucket(path):
            self.path = epath.Path(path)
            temporary = tempfile.TemporaryDirectory(prefix="jaxseg-")
            self.folder = pathlib.Path(self._stack.enter_context(temporary))
        else:
            self.path = self.folder = pathlib.Path(path)
        self.checkpoints: AnyPath = self.path / CHECKPOINTS

    def __enter__(self) -> "WorkDirectory":
        return self

    def __exit__(self, kind, error, trace):
        with self._stack:
            try:
                self.push()
            except OutputError as failure:
                if error is None:
                    raise
                logging.error("%s", failure)  # the first error is the one to end with

    def fetch(self, *names: str):
        """Copies files of an earlier run from the bucket, as far as they exist.

        Raises:
          OutputError: if the bucket cannot be reached.
        """
        if not in_bucket(self.path):
            return
        for name in names:
            with reaching(self.path / name):
                if (self.path / name).exists():
                    (self.folder / name).write_bytes((self.path / name).read_bytes())

    def push(self):
        """Copies files that are new or have changed to the bucket.

        Raises:
          OutputError: if the bucket cannot be reached.
        """
        if not in_bucket(self.path):
            return
        for file in sorted(self.folder.rglob("*")):
            if not file.is_file() or file.name.startswith(".") or file.suffix == ".partial":
                continue
            state = file.stat().st_size, file.stat().st_mtime_ns
            if self._copied.get(file) != state:
                target = self.path / file.relative_to(self.folder)
                with reaching(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
                self._copied[file] = state


@contextlib.contextmanager
def reaching(path: AnyPath) -> Iterator[None]:
    """Turns an error while a bucket is used into an OutputError that names it.

    Raises:
      OutputError: with the reason and the remedy.
    """
    try:
        yield
    except Exception as error:  # of many kinds, by the libraries of the bucket
        raise OutputError(
            f"cannot reach {path}: {first_line(error)}; a bucket needs the extra gcs (pip install"
            " 'jaxseg[gcs]'), and `gcloud auth application-default login` where there is no service"
            " account"
        ) from error
