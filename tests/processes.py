"""What tests of the command line share: scenes, a command for a tiny run, and ways to run it."""

import pathlib
import subprocess

import jaxlib

# Most of a test's time is compilation: the optimisation of LLVM, and how fusions are written, for
# which jax 0.10 has a way that takes half the time.
XLA_FLAGS = "--xla_backend_optimization_level=0"
if jaxlib.__version__.startswith("0.10."):
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 30
CONFIG = """\
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config
def get_config(variant="tiny"):
    return tiny_config()
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
