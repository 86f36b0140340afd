"""Keeps a second training run out of a work directory."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
from collections.abc import Iterator

import filelock
import jax

from jaxseg.atomic_files import write_text, writing
from jaxseg.distributed import multihost
from jaxseg.errors import ConfigError

LOCK, HOLDER = ".lock", ".lock.json"


@contextlib.contextmanager
def run_lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the work directory of a run.

    The operating system releases the lock when the process ends in any way, so there are no locks
    of the dead where the file system has `flock`. Process 0 holds it for all processes of a run.

    Raises:
      ConfigError: in all processes, if another run holds it. The message of process 0 names it.
      OutputError: if the lock cannot be written.
    """
    with contextlib.ExitStack() as held:
        multihost.on_process_0(lambda: held.enter_context(_held(workdir)))
        yield


@contextlib.contextmanager
def _held(workdir):
    lock = filelock.FileLock(workdir / LOCK, timeout=0)
    with writing(workdir / LOCK):
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ConfigError(
                f"{_holder(workdir)} trains in {workdir}. Wait until it has ended, stop it, or"
                " choose another --workdir. Its checkpoints are not touched. If there is no such"
                f" process any more, delete {workdir / LOCK}"
            ) from None
    try:
        holder = {
            "process": os.getpid(),
            "host": platform.node(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "processes": jax.process_count(),
        }
        write_text(workdir / HOLDER, json.dumps(holder) + "\n")
        yield
    finally:
        (workdir / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(workdir):
    """Returns who holds the lock, in words."""
    try:
        found = json.loads((workdir / HOLDER).read_text())
        return f"process {found['process']} on {found['host']}, started {found['since']},"
    except (OSError, ValueError, KeyError):  # it has not written this yet
        return "another process"
