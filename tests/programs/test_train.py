"""The training loop from the outside: resume, signals, bad input. Runs are real processes."""

import json
import re
import shutil
import signal
import subprocess
import time
import warnings

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxseg.checkpoints.resuming import config_differences
from jaxseg.report import __main__ as report
from jaxseg.reporting.manifest import fingerprint
from support.runs import STEPS, failure, run, run_until

pytestmark = pytest.mark.long


def final_state(workdir):
    """Every array of the last checkpoint."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sharding info not provided")
        parts = ocp.load_checkpointables(workdir / "checkpoints" / str(STEPS))
    return jax.tree.map(np.asarray, {name: parts[name] for name in ("model", "optimizer")})


def assert_identical(first, second):
    jax.tree.map(np.testing.assert_array_equal, final_state(first), final_state(second))


def kill_when(command, come):
    """Starts a run and kills it as soon as `come()` is true."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(**command, **quiet) as process:
        while process.poll() is None and not come():
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def logged(workdir):
    """What was recorded of every step, without times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["kind"], line.get("loss"), line.get("mIoU")) for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    run(command(workdir))
    return workdir


def test_run_leaves_everything_it_promises(uninterrupted):
    assert {p.name for p in uninterrupted.iterdir()} >= {
        *("checkpoints", "config.json", "run.json", "metrics.jsonl", "metrics.json"),
        *("per_class.csv", "predictions"),
    }
    assert json.loads((uninterrupted / "config.json").read_text())["steps"] == STEPS
    assert len(json.loads((uninterrupted / "run.json").read_text())["initial_weights"]) == 64
    assert list(uninterrupted.glob("events.*"))
    assert list((uninterrupted / f"predictions/step_{STEPS:06d}").glob("*.png"))


def test_a_run_has_a_report(uninterrupted, tmp_path, capsys):
    report.main([str(uninterrupted), "--out", str(tmp_path / "report.html")])
    assert "note:" not in capsys.readouterr().out  # nothing is left out
    page = (tmp_path / "report.html").read_text()
    miou = float(re.search(r"<td data-value=\"([\d.]+)\">[\d.]+<small> \[", page)[1])
    reported = json.loads((uninterrupted / "metrics.json").read_text())["mIoU"]
    assert miou == pytest.approx(reported, abs=5e-5)
    assert page.count('type="range"') == 3  # each image once, as a worst or a best one


def test_killed_at_any_moment_it_ends_with_the_same_bits(command, uninterrupted, tmp_path):
    """`benchmarks/soak.py` does the same a hundred times."""
    saving, evaluating = "checkpoints/*.orbax-checkpoint-tmp*", "predictions/*"
    for moment in (saving, "step 13/", evaluating):
        if moment.endswith("*"):
            kill_when(command(tmp_path), lambda pattern=moment: any(tmp_path.glob(pattern)))
        else:
            status, _ = run_until(command(tmp_path), moment, signal.SIGKILL)
            assert status == -signal.SIGKILL
    run(command(tmp_path))
    assert_identical(tmp_path, uninterrupted)
    assert logged(tmp_path) == logged(uninterrupted)


@pytest.mark.full
def test_killed_a_run_of_internimage_ends_with_the_same_bits(command, tmp_path):
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    run(command(whole, model="tiny"))
    status, _ = run_until(command(interrupted, model="tiny"), "step 17/", signal.SIGKILL)
    assert status == -signal.SIGKILL
    run(command(interrupted, model="tiny"))
    assert_identical(interrupted, whole)


@pytest.mark.full
def test_sigterm_saves_and_exits_cleanly_and_the_run_goes_on(command, uninterrupted, tmp_path):
    status, output = run_until(command(tmp_path), "step 11/", signal.SIGTERM)
    assert status == 0
    assert "SIGTERM: saved at step" in output
    saved = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert max(saved) >= 11
    # With another number of workers, for who reads does not change what is read; and with a trace.
    changes = {"data.workers": 0, "profile.after": 1, "profile.steps": 2}
    output = run(command(tmp_path, **changes))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert f"resumed, at step {max(saved)} of {STEPS}" in output
    assert_identical(tmp_path, uninterrupted)


@pytest.mark.full
def test_damaged_checkpoint_is_passed_over_with_a_warning(command, uninterrupted, tmp_path):
    keep = {"checkpoint.keep": 3}
    status, _ = run_until(command(tmp_path, **keep), "step 16/", signal.SIGTERM)
    assert status == 0
    *_, older, newest = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    for file in (tmp_path / "checkpoints" / str(newest) / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    output = run(command(tmp_path, **keep))
    assert f"ignoring checkpoint {newest}" in output
    assert f"resumed, at step {older}" in output
    assert_identical(tmp_path, uninterrupted)


def test_nonfinite_loss_stops_with_step_and_tensor(command, tmp_path):
    broken = {"optim.lr": 1e30, "optim.warmup_steps": 0, "checkpoint.every_steps": 1}
    message = failure(command(tmp_path, **broken))
    assert re.search(r"step \d+: loss", message)
    assert re.search(
        "first tensor that is not finite is the gradient of (backbone|decode)", message
    )
    # What was saved before is whole: the run goes on from there, to the same end.
    assert "resumed, at step 1" in failure(command(tmp_path, **broken))


@pytest.mark.full
def test_weights_of_another_run_can_be_the_start(command, uninterrupted, tmp_path):
    last = uninterrupted / "checkpoints" / str(STEPS)
    assert f"tensors of {last}, at step 0 of {STEPS}" in run(command(tmp_path, init=last))
    begun = json.loads((tmp_path / "run.json").read_text())["initial_weights"]
    assert begun == fingerprint(final_state(uninterrupted)["model"]["params"])


def test_eval_mode_repeats_the_evaluation_of_the_run(command, uninterrupted, tmp_path):
    recorded = json.loads((uninterrupted / "metrics.json").read_text())
    checkpoint = uninterrupted / "checkpoints" / str(STEPS)
    output = run(command(tmp_path, "--mode=eval", f"--checkpoint={checkpoint}"))
    assert json.loads((tmp_path / "metrics.json").read_text()) == recorded
    assert output.splitlines()[-2].startswith("val mIoU = ")


def test_another_config_on_the_same_directory_names_the_keys(command, uninterrupted):
    message = failure(command(uninterrupted, **{"optim.weight_decay": 0.1}))
    assert "optim.weight_decay: 0.05 in the checkpoint, 0.1 now" in message


def test_checkpoint_of_another_model_is_refused(command, uninterrupted):
    message = failure(command(uninterrupted, "--mode=eval", **{"model.decode_head.channels": 24}))
    assert "is of another model" in message
    assert "decode_head/convs_3/bn/var: (16,) in the checkpoint, (24,) here" in message


def test_corrupt_image_stops_the_run_and_can_be_skipped(command, scenes, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    image = sorted(root.glob("leftImg8bit/train/*/*.png"))[0]
    image.write_bytes(image.read_bytes()[:500])
    message = failure(command(tmp_path / "run", **{"data.root": root}))
    assert str(image) in message
    assert "data.skip_corrupt=True" in message
    run(command(tmp_path / "run", **{"data.root": root, "data.skip_corrupt": True}))
    assert '"replaced_samples": 1' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_run_may_go_on_where_its_data_have_moved():
    # From before there was "source".
    saved = {"optim": {"lr": 1e-3}, "data": {"root": "a", "workers": 8}}
    now = {"optim": {"lr": 1e-3}, "data": {"root": "b", "workers": 2, "source": "tfds:c"}}
    assert not config_differences(saved, now)
    now["optim"]["lr"] = 1e-4
    assert config_differences(saved, now) == {"optim.lr": "0.001 in the checkpoint, 0.0001 now"}
