"""Exchanges small facts between the processes of one run.

All processes must call these functions together. With one process, nothing is communicated.
"""

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.errors import ConfigError, JaxsegError
from jaxseg.workdir import AnyPath

PER_HOST_SETTINGS = re.compile(
    r"data\.(root|val_root|workers|prefetch)"
)  # settings that may differ between hosts


def any_process(here: bool) -> bool:
    """Returns whether `here` is true in any process."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).any())


def on_process_0(action: Callable[[], Any]):
    """Runs an action in process 0 and makes all processes wait until it is done.

    Raises:
      Exception: in process 0, what the action raises.
      JaxsegError: in the other processes, if the action raises something.
    """
    error = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as raised:
            error = raised
    if any_process(error is not None):
        raise error or JaxsegError("process 0 has failed, and says why")


def result_of_process_0(compute: Callable[[], Any]) -> Any:
    """Returns in all processes what process 0 computes.

    Args:
      compute: returns what JSON can hold.

    Raises:
      Exception: as `on_process_0`.
    """
    found = []
    on_process_0(lambda: found.append(compute()))
    return json.loads(_text_of_process_0(json.dumps(found)))[0]


def check_same_config(settings: Mapping[str, Any]):
    """Checks that all processes have the settings of process 0.

    The settings in `PER_HOST_SETTINGS` may differ.

    Args:
      settings: the config of this process, by flat key.

    Raises:
      ConfigError: in all processes, if any of them differs. Where the settings differ, the message
        names the keys.
    """
    if jax.process_count() == 1:
        return
    own = {key: repr(value) for key, value in settings.items()}
    first = json.loads(_text_of_process_0(json.dumps(own)))
    keys = [
        k
        for k in sorted(own | first)
        if own.get(k) != first.get(k) and not PER_HOST_SETTINGS.fullmatch(k)
    ]
    if any_process(bool(keys)):
        there = [f"config.{key}={own.get(key)} (process 0: {first.get(key)})" for key in keys]
        raise ConfigError(
            f"settings differ from process 0: {'; '.join(there)}"
            if keys
            else "another process was not started with the same config; see its message"
        )


def _text_of_process_0(text: str) -> str:
    """Returns the text of process 0 in all processes."""
    if jax.process_count() == 1:
        return text
    given = np.frombuffer(text.encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.asarray(given.size))))
    padded = np.pad(given, (0, length - given.size))
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0").decode()


def processes_without_shared_file(directory: AnyPath) -> list[int]:
    """Returns the indices of the processes that do not share `directory` with process 0.

    Process 0 writes a file there, and every process looks for it. The list is empty if all find it.
    """
    if jax.process_count() == 1:
        return []
    token = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    file = directory / f".shared-{token}"
    on_process_0(file.touch)
    patience = time.monotonic() + 10  # network file systems may take seconds to show it
    while not file.exists() and time.monotonic() < patience:
        time.sleep(0.1)
    found = multihost_utils.process_allgather(np.asarray(file.exists()))
    if jax.process_index() == 0:
        file.unlink()
    return np.flatnonzero(~found).tolist()
