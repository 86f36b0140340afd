"""What the processes of one run ask of each other; to be called by all of them.

Where there is one process, it asks itself.
"""

import json
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.errors import ConfigError

PER_HOST_SETTINGS = re.compile(
    r"data\.(root|val_root|workers|prefetch)"
)  # settings that hosts may differ in


def any_process(here: bool) -> bool:
    """Whether it holds in any process."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).any())


def on_process_0(action: Callable[[], None]):
    """Process 0 does it, and all go on when it is done.

    Raises:
      OSError: in all processes, where it raises one.
    """
    error = None
    if jax.process_index() == 0:
        try:
            action()
        except OSError as raised:
            error = raised
    if any_process(error is not None):
        raise error or OSError("in process 0")


def check_same_config(settings: Mapping[str, Any]):
    """Refuses to begin where processes have other settings of the config; hosts may, in `OWN`.

    Raises:
      ConfigError: in all processes; where it differs from that of process 0, with the keys.
    """
    if jax.process_count() == 1:
        return
    own = {key: repr(value) for key, value in settings.items()}
    first = json.loads(_of_first(json.dumps(own)))
    keys = [
        k
        for k in sorted(own | first)
        if own.get(k) != first.get(k) and not PER_HOST_SETTINGS.fullmatch(k)
    ]
    if any_process(bool(keys)):
        there = [f"config.{key}={own.get(key)}, there {first.get(key)}" for key in keys]
        raise ConfigError(
            f"not started as process 0: {'; '.join(there)}"
            if keys
            else "another process was not started with the same config; see its message"
        )


def _of_first(text: str) -> str:
    """What process 0 gives."""
    given = np.frombuffer(text.encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.asarray(given.size))))
    padded = np.pad(given, (0, length - given.size))
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0").decode()


def processes_without_shared_file(directory: pathlib.Path) -> list[int]:
    """The processes that do not find in `directory` what process 0 writes there."""
    if jax.process_count() == 1:
        return []
    token = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    file = directory / f".shared-{token}"
    on_process_0(file.touch)
    patience = time.monotonic() + 10  # network file systems show a new file after some seconds
    while not file.exists() and time.monotonic() < patience:
        time.sleep(0.1)
    found = multihost_utils.process_allgather(np.asarray(file.exists()))
    if jax.process_index() == 0:
        file.unlink()
    return np.flatnonzero(~found).tolist()
