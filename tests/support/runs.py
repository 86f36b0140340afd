"""What tests of the command line share: scenes, a command for a tiny run, and ways to run it."""

import concurrent.futures
import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import jaxlib
import pytest

# Flags of whoever runs the tests, such as --xla_cpu_max_isa=AVX2, hold for all of them. They keep a
# name of their own, for conftest.py changes XLA_FLAGS, and the workers of a run inherit that.
USER_FLAGS = os.environ.setdefault("JAXSEG_TEST_XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
# Most of a test's time is compilation: the optimization of LLVM, and how fusions are written, for
# which jax 0.10 has a way that takes half the time.
XLA_FLAGS = f"{USER_FLAGS} --xla_backend_optimization_level=0"
if jaxlib.__version__.startswith("0.10."):
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"

ROOT = pathlib.Path(__file__).parents[2]
LIBTPU = pathlib.Path(sys.prefix) / "libtpu"  # where the Makefile installs the compiler for TPUs
NEEDS_LIBTPU = pytest.mark.skipif(
    not LIBTPU.exists(), reason="libtpu, the compiler for TPUs, could not be installed"
)
CUDA = pathlib.Path(sys.prefix) / "cuda"  # and the compiler for GPUs
NEEDS_CUDA = pytest.mark.skipif(
    not CUDA.exists(), reason="jax-cuda13-plugin, the compiler for GPUs, could not be installed"
)
STEPS = 30
CONFIG = """\
import sys
sys.path.insert(0, {tests!r})
from support import tiny
def get_config(variant="tiny"):
    return getattr(tiny, f"{{variant}}_config")()
"""


def run(command, timeout_seconds=300):
    """What a run that succeeds prints."""
    done = subprocess.run(**command, capture_output=True, timeout=timeout_seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr + done.stdout


def failure(command):
    """What a run that is refused prints: exit status 1 and no traceback."""
    done = subprocess.run(**command, capture_output=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def run_until(command, line, signum):
    """Starts a run, sends a signal when its output has a line with `line`; the exit status."""
    with subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for output in process.stdout:
            if line in output:
                process.send_signal(signum)
                break
        rest = process.stdout.read()
        return process.wait(timeout=120), rest


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(commands, devices):
    """The processes of one run, with all `devices` shared out; killed at the end if need be."""
    count = len(commands)
    address = f"127.0.0.1:{free_port()}"
    own = f" --xla_force_host_platform_device_count={devices // count}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    running = []
    with contextlib.ExitStack() as stack:
        for index, command in enumerate(commands):
            environment = command["env"] | variables | {"JAX_PROCESS_ID": str(index)}
            environment["XLA_FLAGS"] += own
            call = command | {"env": environment}
            running.append(
                stack.enter_context(
                    subprocess.Popen(**call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                )
            )
            stack.callback(running[-1].kill)
        yield running


def ends(running, timeout_seconds=240):
    """(exit status, output) of each."""
    with concurrent.futures.ThreadPoolExecutor(len(running)) as threads:
        outputs = list(threads.map(lambda p: p.communicate(timeout=timeout_seconds)[0], running))
    return [(process.returncode, output) for process, output in zip(running, outputs, strict=True)]


def run_all(commands, devices):
    """What each of several processes prints; all succeed."""
    with started(commands, devices) as running:
        found = ends(running)
    assert all(status == 0 for status, _ in found), found
    return [output for _, output in found]
