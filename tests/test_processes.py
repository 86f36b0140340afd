"""Several processes on one machine as one run: the same numbers, and one end for all of them."""

import json
import shutil
import signal
import time
import warnings

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from processes import ends, failure, run_all, started

DEVICES, LAST = 4, 10
SETTINGS = {"batch_size": 8, "steps": LAST, "data.workers": 0, "eval.every_steps": LAST}
SETTINGS |= {"checkpoint.every_steps": 4}
FOUR = pytest.param(4, marks=pytest.mark.full)


@pytest.fixture(scope="module")
def tiny(command):
    """The command of a run of ten steps of a model that compiles quickly."""

    def make(workdir, *arguments, **changes):
        made = command(workdir, *arguments, **SETTINGS | changes)
        place = made["args"].index("--config") + 1
        made["args"][place] += ":segformer"
        return made

    return make


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The work directory of a run that was never stopped, and what its processes printed."""
    made = {}

    def make(count):
        if count not in made:
            workdir = tmp_path_factory.mktemp(f"processes{count}")
            made[count] = workdir, run_all(tiny(workdir), count, DEVICES)
        return made[count]

    return make


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def final_state(workdir):
    """Every array of the last checkpoint."""
    path = workdir / "checkpoints" / str(LAST)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sharding info not provided")
        stored = ocp.checkpointables_metadata(path).metadata
        abstract = {
            part: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored[part]
            )
            for part in ("model", "optimizer")
        }
        return jax.tree.map(np.asarray, ocp.load_checkpointables(path, abstract))


@pytest.mark.parametrize("count", [2, FOUR])
def test_losses_and_evaluation_are_those_of_one_process(finished, count):
    (one, _), (several, outputs) = finished(1), finished(count)
    expected, found = losses(one), losses(several)
    assert list(found) == list(range(1, LAST + 1))
    # Sums over devices are taken in another order.
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    for name in ("metrics.json", "per_class.csv", f"predictions/step_{LAST:06d}/images.csv"):
        assert (several / name).read_bytes() == (one / name).read_bytes(), name
    # Process 0 speaks for all; gloo has a line of its own.
    said = [line for output in outputs[1:] for line in output.splitlines() if "Gloo" not in line]
    assert said == []


def until(process, line):
    """Reads what a process prints until it has said `line`."""
    for output in process.stdout:
        if line in output:
            return
    raise AssertionError(f"no {line!r}; ended with {process.wait()}")


@pytest.mark.parametrize("count", [2, FOUR])
def test_stopped_and_killed_a_run_ends_with_the_same_bits(tiny, finished, tmp_path, count):
    # SIGTERM to one process: all save the same step and end.
    with started(tiny(tmp_path), count, DEVICES) as running:
        until(running[0], "step 2/")
        running[-1].send_signal(signal.SIGTERM)
        stopped = ends(running)
    assert [status for status, _ in stopped] == [0] * count, stopped
    (saved,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"SIGTERM: saved at step {saved}" in stopped[0][1]
    assert 2 <= saved < LAST

    # SIGKILL of one: the others notice, say so, and end.
    with started(tiny(tmp_path), count, DEVICES) as running:
        until(running[0], f"step {saved + 2}/")
        running[-1].kill()
        since = time.monotonic()
        killed = ends(running)
        assert time.monotonic() - since < 60
    for status, output in killed[:-1]:
        assert status not in (0, -signal.SIGKILL)
        assert "another process is gone" in output or "another task died" in output

    run_all(tiny(tmp_path), count, DEVICES)
    whole, _ = finished(count)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(whole))
    assert losses(tmp_path) == losses(whole)


def test_error_of_one_process_ends_all(tiny, scenes, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    image = sorted(root.glob("leftImg8bit/train/*/*.png"))[0]
    image.write_bytes(image.read_bytes()[:500])
    since = time.monotonic()
    with started(tiny(tmp_path / "run", **{"data.root": root}), 2, DEVICES) as running:
        found = ends(running)
    print(time.monotonic() - since)
    assert all(status not in (0, None) for status, _ in found)
    assert any(f"jaxseg: process {index}: {image}" in output for index, (_, output) in enumerate(found)), found
