"""Resuming with other settings on request, and two starts in one work directory."""

import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from jaxseg.checkpoints.resuming import accepted_changes, allowed_keys
from jaxseg.checkpoints.run_lock import HOLDER, run_lock
from jaxseg.checkpoints.weights import find_checkpoint, load_images_taken
from jaxseg.data.pipeline import training_batches
from jaxseg.distributed import start
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.train import train
from jaxseg.zoo import catalogue
from support.batches import assert_same_batches, make_config, take
from support.runs import ROOT, failure, run
from support.tiny import smallest_config

pytestmark = pytest.mark.long

SAVED = {"batch_size": 2, "steps": 6, "optim": {"lr": 1e-3, "clip_norm": 0.0}, "seed": 0}


def changed(allow="", **changes):
    optim = {key: value for key, value in changes.items() if key in SAVED["optim"]}
    rest = {key: value for key, value in changes.items() if key not in optim}
    return {**SAVED, **rest, "optim": SAVED["optim"] | optim, "checkpoint": {"allow": allow}}


def test_changes_that_were_asked_for_are_accepted_and_listed():
    now = changed("optim.lr, steps", lr=1e-4, steps=8)
    assert accepted_changes(SAVED, now, "checkpoint 6") == [
        "optim.lr: 0.001 in the checkpoint, 0.0001 now",
        "steps: 6 in the checkpoint, 8 now",
    ]


def test_a_refusal_names_the_keys_and_a_way_that_works():
    with pytest.raises(CheckpointError) as refused:
        accepted_changes(SAVED, changed("steps", lr=1e-4, steps=8), "checkpoint 6")
    assert "steps: 6" not in str(refused.value)
    assert "optim.lr: 0.001 in the checkpoint, 0.0001 now" in str(refused.value)
    assert "--config.checkpoint.allow=optim.lr,steps" in str(refused.value)
    assert "--config.init=RUN and --workdir NEW" in str(refused.value)


def test_what_cannot_be_allowed_is_not_offered():
    with pytest.raises(CheckpointError) as refused:
        accepted_changes(SAVED, changed(seed=1), "checkpoint 6")
    assert "checkpoint.allow" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"allow=seed,model: .* batch_size, optim\.clip_norm"):
        allowed_keys(changed("seed, steps, model"))


@pytest.mark.parametrize("workers", [0, 1])
def test_another_batch_size_continues_after_the_images_that_were_taken(scenes, workers):
    """Three batches of 2, then batches of 3: images 0 to 5, then 6 to 8."""
    config = make_config(scenes, workers=workers)
    every_image = take(training_batches(config, batch_size=1, seed=0), 9)
    batches = training_batches(config, batch_size=3, seed=0)
    batches.set_state({"batches_taken": 3, "first_image": 6 - 3 * 3})
    (batch,) = take(batches, 1)
    batches.close()
    singly = every_image[6:9]
    joined = {name: np.concatenate([one[name] for one in singly]) for name in batch}
    assert_same_batches([batch], [joined])


def test_a_run_resumes_with_what_was_asked_for_and_records_it(command, tmp_path):
    workdir = tmp_path / "run"
    run(command(workdir, **{"steps": 6, "checkpoint.every_steps": 3}))
    changes = {"steps": 8, "batch_size": 4, "optim.lr": 1e-4, "optim.clip_norm": 1.0}
    refused = failure(command(workdir, **changes))
    allow = "batch_size,optim.clip_norm,optim.lr,steps"
    assert f"--config.checkpoint.allow={allow}" in refused
    said = run(command(workdir, **changes, **{"checkpoint.allow": allow}))
    assert "step 8/8" in said
    manifest = json.loads((workdir / "run.json").read_text())
    assert "steps: 6 in the checkpoint, 8 now" in manifest["resumed"][-1]["start"]
    assert load_images_taken(find_checkpoint(workdir / "checkpoints/8")) == 6 * 2 + 2 * 4
    below = failure(command(workdir, **changes | {"steps": 7}, **{"checkpoint.allow": "steps"}))
    assert "config.steps=7, but the run in" in below


@pytest.mark.full
def test_after_a_loss_that_is_not_finite_the_advice_works(command, tmp_path):
    changes = {"steps": 4, "optim.warmup_steps": 0, "optim.lr": 1e30, "checkpoint.every_steps": 9}
    said = failure(command(tmp_path / "run", **changes))
    assert "--config.optim.lr=LR --config.checkpoint.allow=optim.lr" in said
    early = {"steps": 2, "optim.lr": 1e-4}
    run(command(tmp_path / "other", **early))
    diverged = early | {"steps": 6, "optim.lr": 1e30, "checkpoint.every_steps": 9}
    allow = {"checkpoint.allow": "optim.lr,steps"}
    assert "not finite" in failure(command(tmp_path / "other", **diverged, **allow))
    run(command(tmp_path / "other", **diverged | {"optim.lr": 1e-5}, **allow))


def test_a_second_run_is_told_who_has_the_directory(command, tmp_path):
    with run_lock(tmp_path):
        said = failure(command(tmp_path))
    assert f"process {os.getpid()} on " in said
    assert "trains in" in said
    assert "choose another --workdir" in said
    assert not (tmp_path / HOLDER).exists()


def test_the_lock_of_a_killed_process_holds_nobody_back(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from jaxseg.checkpoints.run_lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(100)\n"
    )
    call = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=f"process {holder.pid} on .* trains in"),
            run_lock(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / HOLDER).exists()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()


@pytest.mark.full
def test_training_runs_in_a_thread(scenes, tmp_path):
    config = smallest_config()
    config.update_from_flattened_dict(
        {"data.root": str(scenes), "steps": 1, "batch_size": 8, "eval.every_steps": 1}
    )
    errors = []

    def work():
        try:
            with jax.numpy_dtype_promotion("standard"):
                train(config, tmp_path)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert (tmp_path / "checkpoints/1").is_dir()


def test_a_script_without_a_main_guard_is_told_of_it(scenes, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from support.tiny import smallest_config\n"
        "from jaxseg.train import train\n"
        "config = smallest_config()\n"
        f"config.data.root, config.data.workers = {str(scenes)!r}, 1\n"
        f"train(config, {str(tmp_path / 'run')!r})\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.strip().splitlines()[-1]


def without_home(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])


def test_without_a_home_directory_the_variables_suffice(monkeypatch, tmp_path):
    without_home(monkeypatch)
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setenv("JAXSEG_COMPILE_CACHE", str(tmp_path))
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    start.use_compile_cache()
    assert updates == {"jax_compilation_cache_dir": str(tmp_path)}
    assert catalogue.cache_folder() == tmp_path


def test_without_a_home_directory_nothing_is_kept_and_that_is_said(monkeypatch, caplog):
    without_home(monkeypatch)
    monkeypatch.delenv("JAXSEG_COMPILE_CACHE", raising=False)
    monkeypatch.delenv("JAXSEG_CACHE", raising=False)
    start.use_compile_cache()
    assert "set JAXSEG_COMPILE_CACHE" in caplog.text
    with pytest.raises(ConfigError, match="set JAXSEG_CACHE to a folder"):
        catalogue.cache_folder()


def test_a_platform_that_is_not_there_is_named(command, tmp_path):
    call = command(tmp_path)
    call["env"] = call["env"] | {"JAX_PLATFORMS": "cuda"}
    said = failure(call)
    assert "JAX_PLATFORMS=cuda" in said
    assert "set JAX_PLATFORMS=cpu" in said
