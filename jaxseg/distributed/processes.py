"""Several processes as one run: how they find each other, and end together.

The same command runs on every host. Where jax finds nothing that says otherwise, there is one
process, and all of this does nothing.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from jaxseg.errors import ConfigError, JaxsegError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
START_SECONDS = 300  # hosts of a cluster may start minutes apart
TELL_SECONDS = 20  # after which a process says that it waits
HEARTBEAT_SECONDS = 30  # a process that was silent for so long is given up
SHUTDOWN_SECONDS = 60  # at the end, for the others to end too
LEAVE_SECONDS = 10  # after an error, for what all processes still do together


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
