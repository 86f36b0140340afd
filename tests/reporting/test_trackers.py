"""Trackers of runs, with the real libraries and without a network."""

import json
import sqlite3

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.errors import ConfigError
from jaxseg.reporting import report, trackers

CONFIG = {"steps": 100, "optim": {"lr": 1e-3}, "mesh": {"data": -1}}


@pytest.fixture
def panels(tmp_path):
    """The pictures of an evaluation: of the first image, and of the worst."""
    for name in ("photo.png", "worst/01_other.png"):
        path = tmp_path / "panels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((50, 3200, 3), 7, np.uint8)).save(path)
    return tmp_path / "panels"


def track(workdir, name, panels, start_step=0):
    """A run that logs two steps and the pictures of an evaluation."""
    options = {"total_steps": 100, "start_step": start_step, "track": (name,), "config": CONFIG}
    options["name"] = "city"
    with report.Report(workdir, **options) as run:
        for step in (start_step + 1, start_step + 2):
            run.train(step, {"loss": 1 / step, "gradient_norm": float("nan")})
        run.pictures(start_step + 2, panels)


def test_wandb_gets_numbers_and_pictures_and_the_run_goes_on(tmp_path, panels, monkeypatch):
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    workdir = tmp_path / "city"
    track(workdir, "wandb", panels)
    identity = json.loads((workdir / "tracker.json").read_text())["id"]
    (logged,) = (workdir / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb")
    content = logged.read_bytes()
    for text in (b"train/loss", b"eval/photo", b"eval_worst/01", b"jaxseg", b"city", b"optim"):
        assert text in content, text
    assert b"train/gradient_norm" not in content  # it was not a number
    pictures = logged.parent.rglob("media/images/**/*.png")
    assert [cv2.imread(str(file)).shape for file in pictures] == [(25, 1600, 3)] * 2

    track(workdir, "wandb", panels, start_step=1)
    assert json.loads((workdir / "tracker.json").read_text())["id"] == identity
    track(workdir, "wandb", panels)  # from step 0: another run
    assert json.loads((workdir / "tracker.json").read_text())["id"] != identity


def test_trackio_gets_numbers_and_pictures_and_the_run_goes_on(tmp_path, panels, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    workdir = tmp_path / "city"
    track(workdir, "trackio", panels)
    track(workdir, "trackio", panels, start_step=1)
    identity = json.loads((workdir / "tracker.json").read_text())["id"]
    database = sqlite3.connect(next((tmp_path / "trackio").glob("*.db")))
    rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    database.close()
    assert {name for name, *_ in rows} == {f"city-{identity}"}
    losses = [
        (step, json.loads(metrics)["train/loss"])
        for _, step, metrics in rows
        if b"train/loss" in metrics
    ]
    assert losses == [(1, 1), (2, 1 / 2), (2, 1 / 2), (3, 1 / 3)]
    assert sum(b"eval/photo" in metrics for *_, metrics in rows) == 2


def test_several_trackers_get_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = {"total_steps": 3, "track": ("tensorboard", "wandb"), "config": CONFIG}
    with report.Report(tmp_path, **options) as run:
        run.train(1, {"loss": 2.0})
    assert list(tmp_path.glob("events.*"))
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_no_tracker_leaves_the_log(tmp_path):
    with report.Report(tmp_path, total_steps=3, track=()) as run:
        run.train(1, {"loss": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_bad_names_are_refused_before_the_run(monkeypatch):
    with pytest.raises(ConfigError, match="'mlflow' is none of tensorboard, wandb, trackio"):
        trackers.tracker_names(("tensorboard", "mlflow"))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxseg\[wandb\]'"):
        trackers.tracker_names(("wandb",))


def test_names_may_stand_in_one_text():
    assert trackers.tracker_names(("tensorboard, wandb",)) == ("tensorboard", "wandb")
    assert trackers.tracker_names(("",)) == ()


def test_a_run_that_failed_is_shown_so(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ends = []
    finish = wandb.Run.finish
    monkeypatch.setattr(
        wandb.Run, "finish", lambda run, **how: ends.append(how) or finish(run, **how)
    )
    with pytest.raises(ZeroDivisionError), report.Report(tmp_path, total_steps=3, track=("wandb",)):
        _ = 1 / 0
    assert ends == [{"exit_code": 1}]


def test_a_tracker_that_refuses_says_what_to_do(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("api_key not configured\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"wandb refuses: api_key not configured; run `wandb log"):
        report.Report(tmp_path, total_steps=3, track=("wandb",))
