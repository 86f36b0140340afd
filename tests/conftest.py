"""Strict settings for every test: eight CPU devices, no silent promotion of types."""

import ctypes
import gc
import os
import sys
import tempfile

from support.runs import CONFIG, ROOT, STEPS, XLA_FLAGS

# One cache of compiled programs for the runs that all workers start, of this session only.
if "JAXSEG_TEST_CACHE" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jaxseg-compiled-")
    os.environ["JAXSEG_TEST_CACHE"] = CACHE.name

os.environ.setdefault("JAXSEG_COMPILE_CACHE", "")  # none, for programs that tests call
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXSEG_TEST_PLATFORM", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {XLA_FLAGS}"

import jax
import jaxtyping
import psutil
import pytest
from absl import flags, logging

import jaxseg
from jaxseg.data.synthetic.writer import write_street_scenes

KEPT_BYTES = 2 * 2**30  # of a worker's memory, from one file of tests to the next

jaxseg.configure_cpu()  # as the programs do
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tracing makes many small objects, none of them garbage: 6% of a test's time went into looking.
gc.set_threshold(200_000, 50, 100)
flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
    for item in items:
        arguments = item.callspec.params if hasattr(item, "callspec") else {}
        implementation = str(arguments.get("implementation")).partition(" ")[0]
        if implementation in ("gpu", "tpu"):  # "gpu deterministic" is one of them
            item.add_marker(implementation)
    # The longest files first, so that no worker is left alone with them at the end.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def strict_ranks(request):
    """No broadcast over a missing axis, in what is plain mathematics. (Models add biases so.)"""
    strict = request.path.parent.name in ("losses", "ops")
    with jax.numpy_rank_promotion("raise" if strict else "allow"):
        yield


@pytest.fixture(autouse=True)
def same_log_level():
    """Programs that a test calls set how much is logged; the next test logs as it would alone."""
    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)


@pytest.fixture(autouse=True)
def memory_is_given_back(request):
    """A worker of full-size tests would keep 11 GB that it does not use, and the others run out."""
    yield
    if request.node.get_closest_marker("full"):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def caches_are_bounded():
    """After a thousand tests, a worker would keep 5 GB of what it has traced and compiled."""
    yield
    if psutil.Process().memory_info().rss > KEPT_BYTES:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def unchecked_types():
    """For tests of what a function itself says of an argument that it cannot take."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def standard_promotion():
    """For tests that run an optimizer: optax raises Python floats to integer counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Street scenes of 64 × 128 pixels in the layout of Cityscapes: 6 to train, 3 to evaluate."""
    root = tmp_path_factory.mktemp("scenes")
    return write_street_scenes(root, train=6, val=3, image_hw=(64, 128), seed=0)


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    """What --config takes for the tiny model."""
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    return str(file)


@pytest.fixture(scope="session")
def command(scenes, config_file):
    """The command of a run of a small model as a process; `changes` are config keys."""

    def make(workdir, *arguments, model="smallest", **changes):
        settings = {"data.root": scenes, "batch_size": 2, "steps": STEPS, "data.workers": 1}
        settings |= {"checkpoint.every_steps": 7, "eval.every_steps": 20} | changes
        overrides = [f"--config.{key}={value}" for key, value in settings.items()]
        line = ["-m", "jaxseg.main", "--config", f"{config_file}:{model}"]
        line += ["--workdir", str(workdir), *overrides]
        environment = os.environ | {
            "JAXSEG_COMPILE_CACHE": os.environ["JAXSEG_TEST_CACHE"],
            "XLA_FLAGS": XLA_FLAGS,
            "PYTHONUNBUFFERED": "1",
        }
        arguments = [sys.executable, *line, *arguments]
        return {"args": arguments, "env": environment, "cwd": ROOT, "text": True}

    return make
