"""Several processes on one machine as one run: the same numbers, and one end for all of them."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import sys
import time
import warnings

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxseg.distributed import processes
from jaxseg.errors import ConfigError
from support.runs import ROOT, ends, failure, free_port, run, run_all, started

pytestmark = pytest.mark.long

# A signal is answered some steps later; there have to be enough of them.
DEVICES, LAST = 4, 40
SETTINGS = {"batch_size": 8, "steps": LAST, "data.workers": 0, "eval.every_steps": LAST}
SETTINGS |= {"checkpoint.every_steps": 4, "checkpoint.keep": 3}


@pytest.fixture(scope="module")
def tiny(command):
    """The command of a run that lasts long enough for signals."""
    return lambda workdir, *arguments, **changes: command(workdir, *arguments, **SETTINGS | changes)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The work directory of a run that was never stopped, and what its processes printed."""
    made = {}

    def make(count):
        if count not in made:
            workdir = tmp_path_factory.mktemp(f"processes{count}")
            fsdp = {"mesh.fsdp": 1 if count == 1 else 2}
            made[count] = workdir, run_all([tiny(workdir, **fsdp)] * count, DEVICES)
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


@pytest.mark.full
@pytest.mark.parametrize("count", [2, 4])
def test_losses_and_evaluation_are_those_of_one_process(tiny, finished, tmp_path, count):
    (one, _), (several, outputs) = finished(1), finished(count)
    expected, found = losses(one), losses(several)
    assert list(found) == list(range(1, LAST + 1))
    # Sums over devices are taken in another order; later, the difference has grown.
    for step in range(1, 11):
        np.testing.assert_allclose(found[step], expected[step], rtol=1e-5)
    run_all([tiny(tmp_path, "--mode=eval", f"--checkpoint={several}")], DEVICES)
    pictures = f"predictions/step_{LAST:06d}"
    files = ("metrics.json", "per_class.csv", f"{pictures}/images.csv", f"{pictures}/per_image.npz")
    for name in files:
        assert (several / name).read_bytes() == (tmp_path / name).read_bytes(), name
    # Process 0 speaks for all; the others have the lines of gloo, which may be torn.
    for output in outputs[1:]:
        assert not re.search("step|config|miou|jaxseg|warn", output, re.IGNORECASE), output


@pytest.mark.full
def test_run_goes_on_with_fewer_processes_and_devices(tiny, finished, tmp_path):
    several, _ = finished(2)
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    for step in (LAST - 4, LAST):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    (output,) = run_all([tiny(tmp_path)], DEVICES // 2)
    assert f"resumed, at step {LAST - 8} of {LAST}" in output
    expected, found = losses(several), losses(tmp_path)
    assert found.keys() == expected.keys()
    # Sums in another order, carried on over eight steps.
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


@pytest.mark.full
def test_a_frozen_and_adapted_backbone_trains_and_resumes_in_two_processes(tiny, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"optim.freeze": "backbone/", "optim.lora.rank": 4, "steps": 8}
    run_all([tiny(one, **changes)], DEVICES)
    command = tiny(two, **{"mesh.fsdp": 2} | changes)
    run_all([command] * 2, DEVICES)
    shutil.rmtree(two / "checkpoints" / "8")
    output, _ = run_all([command] * 2, DEVICES)
    assert "resumed, at step 4 of 8" in output
    np.testing.assert_allclose(list(losses(two).values()), list(losses(one).values()), rtol=1e-5)


def until(process, line):
    """Reads what a process prints until it has said `line`."""
    for output in process.stdout:
        if line in output:
            return
    raise AssertionError(f"no {line!r}; ended with {process.wait()}")


@pytest.mark.full
@pytest.mark.parametrize("count", [2, 4])
def test_stopped_and_killed_a_run_ends_with_the_same_bits(tiny, finished, tmp_path, count):
    commands = [tiny(tmp_path, **{"mesh.fsdp": 2})] * count
    # SIGTERM to one process: all save the same step and end.
    with started(commands, DEVICES) as running:
        until(running[0], "step 2/")
        running[-1].send_signal(signal.SIGTERM)
        stopped = ends(running)
    assert [status for status, _ in stopped] == [0] * count, stopped
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"SIGTERM: saved at step {saved}" in stopped[0][1]
    assert 2 <= saved <= LAST - 4

    # SIGKILL of one: the others notice, say so, and end.
    with started(commands, DEVICES) as running:
        until(running[0], f"step {saved + 2}/")
        running[-1].kill()
        since = time.monotonic()
        killed = ends(running)
        assert time.monotonic() - since < 60
    for status, output in killed[:-1]:
        assert status not in (0, -signal.SIGKILL)
        assert "another process is gone" in output or "another task died" in output

    run_all(commands, DEVICES)
    whole, _ = finished(count)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(whole))
    assert losses(tmp_path) == losses(whole)


@pytest.mark.full
def test_error_of_one_process_ends_all(tiny, scenes, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    image = sorted(root.glob("leftImg8bit/train/*/*.png"))[0]
    image.write_bytes(image.read_bytes()[:500])
    run = tiny(tmp_path / "run", **{"data.root": root})
    with started([run] * 2, DEVICES) as running:
        found = ends(running)
    assert all(status not in (0, None) for status, _ in found)
    told = [f"jaxseg: process {i}: {image}" in output for i, (_, output) in enumerate(found)]
    assert any(told), found


@pytest.mark.full
def test_processes_with_other_settings_are_refused(tiny, tmp_path):
    runs = [tiny(tmp_path, seed=seed, **{"data.workers": seed}) for seed in (0, 1)]
    with started(runs, DEVICES) as running:
        found = ends(running)
    assert [status for status, _ in found] == [1, 1]
    assert "process 1: settings differ from process 0: config.seed=1 (process 0: 0)" in found[1][1]
    assert "process 0: another process was not started with the same config" in found[0][1]


# The others wait for so long after a save that has failed in one process.
SHORT = "import sys, runpy; from jaxseg.checkpoints import manager"
SHORT += "; manager.SAVE_SECONDS = 15; sys.argv[0] = 'jaxseg'"


@pytest.mark.full
def test_saves_that_fail_in_one_process_are_made_again_by_all(tiny, tmp_path):
    settings = {"steps": 20, "eval.every_steps": 20, "mesh.fsdp": 4}
    runs = [tiny(tmp_path, **settings) for _ in range(2)]
    for command in runs:
        place = command["args"].index("-m")
        program = f"{SHORT}; runpy.run_module('jaxseg.main', run_name='__main__')"
        command["args"][place : place + 2] = ["-c", program]
    # Of the second, the kernel lets no file grow over 32 KB.
    runs[1]["args"] = ["bash", "-c", 'ulimit -f 32; exec "$@"', "bash", *runs[1]["args"]]
    with started(runs, DEVICES) as running:
        found = ends(running)
    for index, (status, output) in enumerate(found):
        assert status == 1, output
        assert "saving step 4 failed, trying again" in output
        assert f"process {index}: cannot save step 12 in {tmp_path}/checkpoints, 3 times" in output
    assert "Failed writing" in found[1][1]


@pytest.mark.full
def test_work_directories_that_are_not_one_are_refused(tiny, tmp_path):
    with started([tiny(tmp_path / "a"), tiny(tmp_path / "b")], DEVICES) as running:
        found = ends(running)
    for index, (status, output) in enumerate(found):
        assert status == 1
        assert f"process {index}: the work directory {tmp_path / 'ab'[index]}" in output
        assert "process 1 does not see what process 0 writes there" in output


JOIN = """\
import sys
from jaxseg.distributed import processes
processes.START_SECONDS = int(sys.argv[1])
try:
    processes.start(preemptible=True)
except processes.ConfigError as error:
    sys.exit(str(error))
import jax
print(jax.process_index(), "of", jax.process_count())
"""


def joining(seconds=60, **variables):
    """The command of a program that joins the others and says which one it is."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | variables
    arguments = [sys.executable, "-c", JOIN, str(seconds)]
    return {"args": arguments, "env": environment, "cwd": ROOT, "text": True}


def test_processes_of_a_slurm_job_find_each_other():
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    tasks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        outputs = threads.map(lambda task: run(joining(**job, **task)), tasks)
    for index, output in enumerate(outputs):
        assert f"{index} of 2" in output


def test_process_that_is_missing_at_the_start_is_not_waited_for_without_end():
    variables = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    message = failure(joining(3, JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_port()}", **variables))
    assert "process 0: waited 3 s for all 2 processes at 127.0.0.1" in message


def test_address_alone_is_not_enough_outside_a_cluster():
    message = failure(joining(JAX_COORDINATOR_ADDRESS="127.0.0.1:1"))
    assert "JAX_NUM_PROCESSES and JAX_PROCESS_ID not set" in message


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"COUNT": "2"}, "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID not set"),
        ({"ADDRESS": "h:1", "COUNT": "2", "INDEX": "2"}, "JAX_PROCESS_ID=2 must be from 0 to"),
        ({"ADDRESS": "h:1", "COUNT": "two", "INDEX": "1"}, "whole numbers"),
        ({"ADDRESS": "h", "COUNT": "2", "INDEX": "1"}, "JAX_COORDINATOR_ADDRESS=h must be HOST:"),
    ],
)
def test_variables_that_do_not_go_together_are_named(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(getattr(processes, name), value)
    with pytest.raises(ConfigError, match=said):
        processes.start(preemptible=False)
