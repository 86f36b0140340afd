"""Joins several processes into one run, and ends them together.

The same command runs on every host. If neither the environment nor JAX reports a cluster, there is
one process and this module does nothing.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxseg.errors import ConfigError, JaxsegError, first_line

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
START_SECONDS = 300  # the hosts of a cluster may start minutes apart
TELL_SECONDS = 20  # after this time a process reports that it is waiting
HEARTBEAT_SECONDS = 30  # a process that is silent for longer counts as lost
SHUTDOWN_SECONDS = 60  # at the end, how long to wait for the other processes to end
LEAVE_SECONDS = 10  # after an error, how long clean-up with the others may take


def start(preemptible: bool):
    """Joins the other processes of the run, before any device is touched.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe the processes.
    Without them, JAX detects the processes itself on Cloud TPU, on GKE, under Slurm and under
    Open MPI.

    Args:
      preemptible: whether all processes stop together when one receives SIGTERM (`StopSignal`).
        Otherwise SIGTERM ends the process that receives it.

    Raises:
      ConfigError: if the variables are incomplete or contradict each other.
    """
    if os.environ.get(COUNT) == "1":
        return
    if jax.config.jax_platforms == "cpu":
        # A program on the CPU of a TPU VM is not one of the pod's processes.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.config.update("jax_enable_preemption_service", preemptible)
    with _deadline(START_SECONDS, f"{_own_name()}: waited {START_SECONDS} s for {_all()}"):
        try:
            jax.distributed.initialize(
                **_given(),
                initialization_timeout=2 * START_SECONDS,  # JAX's own ends in a crash
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except ValueError as error:
            if "coordinator_address should be defined" in str(error):
                return  # no cluster
            if "must be defined" in str(error):
                raise ConfigError(_missing([COUNT, INDEX])) from error
            raise


def _given() -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize` that the environment gives."""
    values = {name: os.environ.get(name, "") for name in (ADDRESS, COUNT, INDEX)}
    if not (values[COUNT] or values[INDEX]):
        return {"local_device_ids": []} if _alone_on_its_host() else {}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ConfigError(_missing(missing))
    try:
        count, index = int(values[COUNT]), int(values[INDEX])
    except ValueError as error:
        raise ConfigError(f"{COUNT} and {INDEX} must be whole numbers: {error}") from error
    if not 0 <= index < count:
        raise ConfigError(f"{INDEX}={index} must be from 0 to {COUNT} - 1 = {count - 1}")
    if not re.fullmatch(r".+:\d+", values[ADDRESS]):
        raise ConfigError(f"{ADDRESS}={values[ADDRESS]} must be HOST:PORT of process 0")
    return {
        "coordinator_address": values[ADDRESS],
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _missing(names):
    return (
        f"{' and '.join(names)} not set: several processes need {ADDRESS}=HOST:PORT (of process 0),"
        f" {COUNT} and {INDEX}, which differs in each"
    )


def _alone_on_its_host():
    """Returns whether Slurm or Open MPI started one process per host.

    Such a process takes all devices of its host. By default JAX gives every process one GPU under
    these launchers.
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
    """Ends the process with a message if the body of the `with` statement takes too long."""

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
    """Reports an error in one of several processes at once and ends that process within seconds.

    The process exits within `LEAVE_SECONDS`. Without this it would block in its own clean-up,
    waiting for the others, and they for it. Once it is gone, the others notice and exit.

    Use it inside any context manager whose exit waits for all processes. Around one, it acts too
    late.

    Args:
      place: returns where the run stands, for the message.

    Raises:
      SystemExit: instead of the original error, if there are several processes.
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
                f"jaxseg: {own}: {place()}: another process is gone ({first_line(error)})."
                " The saved checkpoints are intact; start all processes again to resume from them"
            )
        else:
            message = f"{own}: {place()}\n{traceback.format_exc()}"
        print(message, file=sys.stderr, flush=True)
        timer = threading.Timer(LEAVE_SECONDS, os._exit, [1])
        timer.daemon = True
        timer.start()
        raise SystemExit(1) from error


def _tells_of_a_loss(error):
    """Returns whether an error of JAX or Orbax means that another process does not answer."""
    return isinstance(error, RuntimeError | ValueError) and re.search(
        r"gloo|nccl|connection (reset|closed|refused)|coordination service|UNAVAILABLE"
        r"|DEADLINE_EXCEEDED|barrier",
        str(error),
        re.IGNORECASE,
    )


class StopSignal:
    """Tells when SIGTERM has arrived at this process, or at any of several processes.

    Several processes agree on the step to stop at through JAX's preemption service. That service
    then handles the signal.

    Attributes:
      arrived: whether SIGTERM has arrived; only set with one process.
    """

    def __init__(self):
        self.arrived = False  # set only where there is one process
        # Python handles signals in its main thread alone. A run in another thread leaves SIGTERM as
        # it was, which ends the process; the next start resumes from the last checkpoint.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main_thread:
            signal.signal(signal.SIGTERM, self._arrive)

    def _arrive(self, number, frame):
        self.arrived = True

    def at(self, step: int) -> bool:
        """Returns whether to stop after `step` steps.

        All processes must call this exactly once per step.
        """
        if jax.process_count() == 1:
            return self.arrived
        return multihost_utils.reached_preemption_sync_point(step)
