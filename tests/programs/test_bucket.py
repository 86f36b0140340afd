"""Work directories in a bucket: the bucket is one on 127.0.0.1, the libraries are the real ones."""

import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend

from jaxseg.checkpoints.weights import find_checkpoint, load_on_device
from jaxseg.errors import CheckpointError, OutputError
from jaxseg.models.segmentation_model import build_model
from jaxseg.workdir import WorkDirectory
from support.bucket import BUCKET, serving_bucket
from support.runs import STEPS, run, run_until
from support.tiny import smallest_config


@pytest.fixture(scope="module")
def bucket():
    with serving_bucket() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


@pytest.fixture
def command_there(bucket, command):
    """The command of a small run whose environment leads to the bucket."""

    def make(workdir, *arguments, **changes):
        made = command(workdir, *arguments, **changes)
        return made | {"env": made["env"] | bucket}

    return make


def test_files_reach_the_bucket_when_they_are_new_or_have_changed(bucket):
    path = f"{BUCKET}/files"
    with WorkDirectory(path) as directory:
        (directory.folder / "predictions").mkdir()
        (directory.folder / "predictions" / "one.txt").write_text("1")
        (directory.folder / "log.jsonl").write_text("a\n")
        (directory.folder / ".lock").touch()
        (directory.folder / "half.partial").touch()
        directory.push()
        assert (epath.Path(path) / "log.jsonl").read_text() == "a\n"
        (epath.Path(path) / "predictions" / "one.txt").write_text("not written again")
        with (directory.folder / "log.jsonl").open("a") as log:
            log.write("b\n")
    assert {file.name for file in epath.Path(path).iterdir()} == {"log.jsonl", "predictions"}
    assert (epath.Path(path) / "predictions" / "one.txt").read_text() == "not written again"
    assert not directory.folder.exists()
    with WorkDirectory(path) as directory:
        directory.fetch("log.jsonl", "absent.json")
        assert (directory.folder / "log.jsonl").read_text() == "a\nb\n"


def test_a_folder_of_this_machine_is_used_as_it_is(tmp_path):
    with WorkDirectory(tmp_path / "run") as directory:
        assert directory.folder == directory.path == tmp_path / "run"
        directory.fetch("log.jsonl")
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_is_not_there_is_named_before_anything_is_computed(bucket):
    with pytest.raises(OutputError, match=r"cannot reach gs://nowhere/run/.*\[gcs\]"):
        WorkDirectory("gs://nowhere/run").__enter__()
    with pytest.raises(CheckpointError, match=f"no checkpoint in {BUCKET}/nothing"):
        find_checkpoint(f"{BUCKET}/nothing")


def test_what_cannot_be_copied_is_kept_here(bucket, monkeypatch, caplog):
    def fail(*_):
        raise OSError("connection lost")

    failed = pytest.raises(OutputError, match=r"connection lost.*\n  The files are in ")
    with failed, WorkDirectory(f"{BUCKET}/lost") as directory:
        (directory.folder / "a.txt").write_text("a")
        monkeypatch.setattr(type(directory.path), "write_bytes", fail)
        directory.push()  # tried again at the end
        assert "connection lost" in caplog.text
    assert (directory.folder / "a.txt").read_text() == "a"
    shutil.rmtree(directory.folder)


def test_without_the_package_a_checkpoint_there_names_the_extra(monkeypatch):
    def missing(*_):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", missing)
    with pytest.raises(CheckpointError, match=r"cannot reach gs://bucket/run: .*jaxseg\[gcs\]"):
        find_checkpoint("gs://bucket/run")


def ended(workdir):
    """The last weights of a run, and the loss of every step."""
    model = build_model(smallest_config().model)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return (
        jax.device_get(load_on_device(workdir / "checkpoints" / str(STEPS), model)),
        [(line["step"], line.get("loss")) for line in lines],
    )


@pytest.mark.full
def test_a_run_in_a_bucket_is_resumed_evaluated_and_used(command_there, tmp_path):
    workdir = f"{BUCKET}/run"
    status, output = run_until(command_there(workdir), "step 18/", signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    output = run(command_there(workdir))
    assert re.search("resumed, at step (7|14) of", output), output
    assert f"pictures in {workdir}/predictions/step_{STEPS:06d}" in output
    run(command_there(tmp_path / "whole"))
    variables, losses = zip(*map(ended, (epath.Path(workdir), tmp_path / "whole")), strict=True)
    jax.tree.map(np.testing.assert_array_equal, *variables)
    assert losses[0] == losses[1]
    assert len(json.loads((epath.Path(workdir) / "run.json").read_text())["resumed"]) == 1

    output = run(command_there(f"{BUCKET}/scores", "--mode=eval", f"--checkpoint={workdir}"))
    assert "val mIoU" in output
    scores, trained = (
        json.loads((epath.Path(f"{BUCKET}/{name}") / "metrics.json").read_text())
        for name in ("scores", "run")
    )
    assert scores == trained
    begun = run(command_there(tmp_path / "begun", init=workdir, steps=1))
    assert f"tensors of {workdir}, at step 0 of 1" in begun
