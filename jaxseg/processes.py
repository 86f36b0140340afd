"""Several processes as one run: how they find each other, agree, and end together.

The same command runs on every host. Where jax finds nothing that says otherwise, there is one
process, and all of this does nothing.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.errors import ConfigError, JaxsegError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
START_SECONDS = 300  # hosts of a cluster may start minutes apart
TELL_SECONDS = 20  # after which a process says that it waits
HEARTBEAT_SECONDS = 30  # a process that was silent for so long is given up
SHUTDOWN_SECONDS = 60  # at the end, for the others to end too
LEAVE_SECONDS = 10  # after an error, for what all processes still do together
OWN = re.compile(r"data\.(root|val_root|workers|prefetch)")  # settings that hosts may differ in


def start(preemptible: bool):
    """Joins the other processes, before any device is touched.

    They are those that `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` tell of,
    or that jax finds by itself: on Cloud TPU, GKE, under Slurm and Open MPI.

    Args:
      preemptible: all stop together when one has SIGTERM (`StopSignal`); else it ends the process.

    Raises:
      ConfigError: where the variables do not go together.
    """
    if os.environ.get(COUNT) == "1":
        return
    if jax.config.jax_platforms == "cpu":
        # A program on the processor of a TPU VM is none of the pod's processes.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.config.update("jax_enable_preemption_service", preemptible)
    with _deadline(START_SECONDS, f"{_own_name()}: {START_SECONDS} s have passed without {_all()}"):
        try:
            jax.distributed.initialize(
                **_given(),
                initialization_timeout=2 * START_SECONDS,  # jax's own end is a crash
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except ValueError as error:
            if "coordinator_address should be defined" in str(error):
                return  # no cluster
            if "must be defined" in str(error):
                raise ConfigError(_missing([COUNT, INDEX])) from error
            raise


def _given():
    """What the environment says, for jax.distributed.initialize."""
    values = {name: os.environ.get(name) for name in (ADDRESS, COUNT, INDEX)}
    if not (values[COUNT] or values[INDEX]):
        return {"local_device_ids": []} if _alone_on_its_host() else {}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ConfigError(_missing(missing))
    try:
        count, index = int(values[COUNT]), int(values[INDEX])
    except ValueError as error:
        raise ConfigError(f"{COUNT} and {INDEX} are to be whole numbers: {error}") from error
    if not 0 <= index < count:
        raise ConfigError(f"{INDEX}={index} is to be from 0 to {COUNT} - 1 = {count - 1}")
    if not re.fullmatch(r".+:\d+", values[ADDRESS]):
        raise ConfigError(f"{ADDRESS}={values[ADDRESS]} is to be HOST:PORT, of process 0")
    return {
        "coordinator_address": values[ADDRESS],
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _missing(names):
    return (
        f"{' and '.join(names)} not set: several processes need {ADDRESS}=HOST:PORT (of process 0),"
        f" {COUNT} and {INDEX}, the last of them another in each"
    )


def _alone_on_its_host():
    """Whether Slurm or Open MPI started one process a host, which then has all of its devices.

    jax gives every process one GPU under these.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get(
        "OMPI_COMM_WORLD_LOCAL_SIZE", ""
    )
    return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None


def _own_name():
    return f"process {os.environ[INDEX]}" if INDEX in os.environ else "this process"


def _all():
    if INDEX not in os.environ:
        return "the other processes; was the same command started on all hosts?"
    return (
        f"all {os.environ.get(COUNT)} processes at {os.environ.get(ADDRESS)}; were all started,"
        f" each with its {INDEX}, and can that address be reached from here?"
    )


@contextlib.contextmanager
def _deadline(seconds, message):
    """Ends the process with a message where what is inside takes longer."""

    def end():
        print(f"jaxseg: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    def tell():
        print(f"jaxseg: {_own_name()} waits for {_all()}", file=sys.stderr, flush=True)

    timers = [threading.Timer(seconds, end), threading.Timer(TELL_SECONDS, tell)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


@contextlib.contextmanager
def ending_together(place: Callable[[], str] = lambda: "start-up"):
    """Inside, an error in one of several processes is told at once and ends it within seconds.

    Otherwise it would wait for the others on its way out, and they for it: now they miss it, and
    end too. Around whatever waits for all processes when it is closed, this comes too late.

    Args:
      place: where the run stands, for the message.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        own = f"process {jax.process_index()}"
        if isinstance(error, JaxsegError):
            message = f"jaxseg: {own}: {error}"
        elif _tells_of_a_loss(error):
            message = (
                f"jaxseg: {own}: {place()}: another process is gone ({_first_line(error)}). What"
                " was saved before is intact; start all processes again to go on from there"
            )
        else:
            message = f"{own}: {place()}\n{traceback.format_exc()}"
        print(message, file=sys.stderr, flush=True)
        timer = threading.Timer(LEAVE_SECONDS, os._exit, [1])
        timer.daemon = True
        timer.start()
        raise SystemExit(1) from error


def _tells_of_a_loss(error):
    """Whether jax or orbax says that another process does not answer."""
    return isinstance(error, RuntimeError | ValueError) and re.search(
        r"gloo|nccl|connection (reset|closed|refused)|coordination service|UNAVAILABLE"
        r"|DEADLINE_EXCEEDED|barrier",
        str(error),
        re.IGNORECASE,
    )


def _first_line(error):
    return str(error).strip().partition("\n")[0]


def any_of(here: bool) -> bool:
    """Whether it holds in any process; to be asked by all of them."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).any())


def by_first(action: Callable[[], None]):
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
    if any_of(error is not None):
        raise error or OSError("in process 0")


def check_same(settings: Mapping[str, Any]):
    """Refuses to begin where processes have other settings of the config; hosts may, in `OWN`.

    Raises:
      ConfigError: in all processes; where it differs from that of process 0, with the keys.
    """
    if jax.process_count() == 1:
        return
    own = {key: repr(value) for key, value in settings.items()}
    first = json.loads(_of_first(json.dumps(own)))
    keys = [k for k in sorted(own | first) if own.get(k) != first.get(k) and not OWN.fullmatch(k)]
    if any_of(bool(keys)):
        there = [f"config.{key}={own.get(key)}, there {first.get(key)}" for key in keys]
        raise ConfigError(
            f"not started as process 0: {'; '.join(there)}"
            if keys
            else "another process was not started with the same config; see its message"
        )


def _of_first(text: str) -> str:
    """What process 0 gives; to be asked by all of them."""
    given = np.frombuffer(text.encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.asarray(given.size))))
    padded = np.pad(given, (0, length - given.size))
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0").decode()


def without_file_of_first(directory: pathlib.Path) -> list[int]:
    """The processes that do not find in `directory` what process 0 writes there."""
    if jax.process_count() == 1:
        return []
    token = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    file = directory / f".shared-{token}"
    by_first(file.touch)
    patience = time.monotonic() + 10  # network file systems show a new file after some seconds
    while not file.exists() and time.monotonic() < patience:
        time.sleep(0.1)
    found = multihost_utils.process_allgather(np.asarray(file.exists()))
    if jax.process_index() == 0:
        file.unlink()
    return np.flatnonzero(~found).tolist()


class StopSignal:
    """Tells when SIGTERM has arrived: at this process or, where there are several, at any of them.

    Several agree on a step through jax's preemption service, which then has the signal's handler.
    """

    def __init__(self):
        self.arrived = False  # at one process alone
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._arrive)

    def _arrive(self, number, frame):
        self.arrived = True

    def at(self, step: int) -> bool:
        """Whether to stop after so many steps; to be asked at every step, once, by all."""
        if jax.process_count() == 1:
            return self.arrived
        return multihost_utils.reached_preemption_sync_point(step)
