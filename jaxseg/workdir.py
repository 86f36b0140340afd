"""Work directories: folders of this machine, and folders in buckets of Google Cloud (gs://).

Files for a bucket are written into a temporary folder and copied from there. Only checkpoints go to
the bucket directly, by Orbax.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator

from absl import logging
from etils import epath

from jaxseg.errors import JaxsegError, OutputError, first_line

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

    Raises:
      OutputError: at its beginning, if a bucket cannot be written to; at its end, if files could
        not be copied. They then stay in the temporary folder, which the message names.
    """

    def __init__(self, path: str | os.PathLike):
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}  # size and time of what was copied
        self.path = epath.Path(path) if in_bucket(path) else pathlib.Path(path)
        self.folder = pathlib.Path(path)
        self.checkpoints = self.path / CHECKPOINTS

    def __enter__(self) -> "WorkDirectory":
        if in_bucket(self.path):
            probe = self.path / f".writable-{secrets.token_hex(4)}"
            with reaching(probe, OutputError):
                self.path.mkdir(parents=True, exist_ok=True)
                probe.touch()
                probe.unlink()
            self.folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxseg-"))
        return self

    def __exit__(self, kind, error, trace):
        if not in_bucket(self.path):
            return
        try:
            self._copy_changed()
        except OutputError as failure:
            message = f"{failure}\n  The files are in {self.folder}"
            if error is None:
                raise OutputError(message) from failure
            logging.error("%s", message)  # the first error is the one to end with
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def fetch(self, *names: str):
        """Copies files of an earlier run from the bucket, as far as they exist.

        Raises:
          OutputError: if the bucket cannot be reached.
        """
        if not in_bucket(self.path):
            return
        for name in names:
            with reaching(self.path / name, OutputError):
                if (self.path / name).exists():
                    (self.folder / name).write_bytes((self.path / name).read_bytes())

    def push(self):
        """Copies files that are new or have changed to the bucket.

        A failure is logged. The next call copies what is left.
        """
        if in_bucket(self.path):
            try:
                self._copy_changed()
            except OutputError as error:
                logging.error("%s", error)

    def _copy_changed(self):
        for file in sorted(self.folder.rglob("*")):
            target = self.path / file.relative_to(self.folder)
            with reaching(target, OutputError):
                if not file.is_file() or file.name.startswith(".") or file.suffix == ".partial":
                    continue
                state = file.stat().st_size, file.stat().st_mtime_ns
                if self._copied.get(file) != state:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
                    self._copied[file] = state


@contextlib.contextmanager
def reaching(path: AnyPath, kind: type[JaxsegError]) -> Iterator[None]:
    """Turns an error while a bucket is used into one that names it and says what to do.

    Errors of paths outside of buckets, and those that are meant for the user, stay as they are.

    Args:
      path: what is read or written.
      kind: the kind of the new error.
    """
    try:
        yield
    except JaxsegError:
        raise
    except Exception as error:  # of many kinds, by the libraries of the bucket
        if not in_bucket(path):
            raise
        raise kind(
            f"cannot reach {path}: {first_line(error)}; a bucket needs the extra gcs (pip install"
            " 'jaxseg[gcs]'), and `gcloud auth application-default login` where there is no service"
            " account"
        ) from error
