"""Saving where storage fails: tried again, reported, and the last good checkpoint stays."""

import contextlib
import resource
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.checkpoints.manager import Checkpoints
from jaxseg.errors import CheckpointError
from jaxseg.training.state import TrainState

CONFIG = {"model": {"backbone": {"kind": "internimage"}, "kernels": "auto"}, "batch_size": 2}
LIMIT = 1 << 20  # bytes that a file may have while storage is full


def state_of(step):
    """One array above the limit, of numbers that do not compress."""
    weights = jax.random.normal(jax.random.key(step), (1 << 20,))
    return TrainState(jnp.int32(step), {"weights": weights}, {}, (jnp.zeros(2),))


@contextlib.contextmanager
def full_storage():
    """The kernel lets no file grow over the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_to_full_storage(saved, step, metrics=None):
    """Begins to save, and waits until that has failed in the background."""
    with full_storage():
        saved.save(state_of(step), step, metrics)
        while saved._checkpointer.is_saving_in_progress():
            time.sleep(0.01)


def checkpoints_in(directory):
    return contextlib.closing(Checkpoints(directory, CONFIG, keep=1))


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def assert_holds(directory, step):
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0)
    )
    with checkpoints_in(directory) as saved:
        state = saved.restore_latest(abstract)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))


def test_the_next_save_takes_the_place_of_one_that_failed(tmp_path, caplog):
    with checkpoints_in(tmp_path) as saved:
        saved.save(state_of(1), 1)
        saved.finish(state_of(1))
        save_to_full_storage(saved, 2)
        assert steps_in(tmp_path) == [1]
        saved.save(state_of(3), 3)
        assert "saving step 2 failed, trying again" in caplog.text
        assert "File too large" in caplog.text
        saved.finish(state_of(3))
    assert steps_in(tmp_path) == [3]
    assert_holds(tmp_path, 3)


def test_the_last_save_is_made_again_until_it_is_there(tmp_path, caplog):
    with checkpoints_in(tmp_path) as saved:
        save_to_full_storage(saved, 1)
        saved.finish(state_of(1))
    assert "saving step 1 failed, trying again" in caplog.text
    assert_holds(tmp_path, 1)


def test_a_checkpoint_that_gets_its_metrics_stays_until_that_is_done(tmp_path):
    with checkpoints_in(tmp_path) as saved:
        saved.save(state_of(1), 1)
        saved.finish(state_of(1))
        with full_storage():
            saved.save(state_of(1), 1, {"mIoU": 0.5})
            with pytest.raises(CheckpointError, match=r"3 times in a row: .* too large"):
                saved.finish(state_of(1))
    assert_holds(tmp_path, 1)
    with checkpoints_in(tmp_path) as saved:
        saved.save(state_of(1), 1, {"mIoU": 0.5})
        saved.finish(state_of(1))
        assert saved.evaluated(1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_there_is_a_complete_checkpoint_at_every_moment(tmp_path):
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            seen.append(steps_in(tmp_path))

    with checkpoints_in(tmp_path) as saved:
        saved.save(state_of(1), 1)
        saved.finish(state_of(1))
        watcher = threading.Thread(target=look)
        watcher.start()
        for step in (2, 3):
            saved.save(state_of(step), step)
        saved.finish(state_of(3))
        done.set()
        watcher.join()
    assert [] not in seen
    assert [1] in seen
    assert steps_in(tmp_path) == [3]


def test_run_that_cannot_save_ends_with_a_message(command, tmp_path):
    run = command(tmp_path, **{"checkpoint.every_steps": 1, "data.workers": 0})
    limited = ["bash", "-c", 'ulimit -f 32; exec "$@"', "bash"]
    run["args"] = limited + run["args"]
    ended = subprocess.run(**run, capture_output=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert "saving step 1 failed, trying again" in ended.stderr
    # Threads that write have tracebacks of their own.
    said = [line for line in ended.stderr.splitlines() if line.startswith("jaxseg: ")]
    assert len(said) == 1
    assert f"cannot save step 3 in {tmp_path}/checkpoints, 3 times in a row" in said[0]
