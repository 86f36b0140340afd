"""What a run tells is complete, strict and readable, and a resumed run tells it once."""

import csv
import io
import json
import re
import subprocess
import types

import jax
import numpy as np
import pytest
import rich.console
from PIL import Image
from tensorboardX.proto import event_pb2

from jaxseg.evaluation import charts, metrics, results
from jaxseg.reporting import manifest, report

CLASSES = ("road", "car [small]", "bus")
PROGRESS = {
    "loss": 0.4123,
    "learning_rate": 5.94e-5,
    "step_seconds": 0.412,
    "images_per_second": 38.96,
    "data_share": 0.0123,
}


@pytest.fixture
def scores():
    """Road 8 of 10 right, car only predicted, bus nowhere."""
    return metrics.compute_scores(
        np.array([[8, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int64)
    )


def reporter(workdir, **options):
    return report.Report(workdir, **{"total_steps": 160000, "start_step": 0} | options)


def lines(workdir):
    """The recorded lines; a JSON reader that is strict would refuse NaN."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir):
    """All TensorBoard events of a directory: records of length, checksum, data, checksum."""
    for path in sorted(workdir.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(workdir):
    return {
        (value.tag, event.step): value.simple_value
        for event in events(workdir)
        for value in event.summary.value
        if value.HasField("simple_value")
    }


def terminal():
    file = io.StringIO()
    return rich.console.Console(file=file, force_terminal=True, width=100, color_system=None)


def test_without_a_terminal_progress_is_one_plain_line(tmp_path, capsys):
    with reporter(tmp_path) as run:
        run.train(1200, PROGRESS)
    assert capsys.readouterr().out == (
        "step 1200/160000 · loss 0.412 · lr 5.9e-05 · 0.412 s/step · 39.0 images/s · data 1%\n"
    )


def test_only_the_metrics_given_are_shown(tmp_path, capsys):
    with reporter(tmp_path) as run:
        run.train(7, {"loss": 1.0, "accuracy": 0.5})
    assert capsys.readouterr().out == "step 7/160000 · loss 1.000\n"


def test_time_left_follows_the_pace_since_the_first_report(tmp_path, capsys, monkeypatch):
    clock = iter([1000.0, 1020.0])
    with reporter(tmp_path, total_steps=100) as run:
        monkeypatch.setattr(report, "time", types.SimpleNamespace(monotonic=clock.__next__))
        run.train(10, {"loss": 1.0})
        run.train(20, {"loss": 1.0, "step_seconds": 0.1})  # without evaluation, saving, ...
    first, second = capsys.readouterr().out.splitlines()
    assert "eta" not in first  # its steps include the compilation
    assert second.endswith("eta 0:02:40")


def test_memory_is_shown_and_recorded_where_the_device_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "device_memory", lambda: (61_000_000_000, 80_000_000_000))
    with reporter(tmp_path) as run:
        run.train(1, {"loss": 1.0})
    assert "mem 61/80 GB" in capsys.readouterr().out
    assert lines(tmp_path)[0]["memory_used"] == 61e9


def test_the_fullest_device_tells_the_memory(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return self.used and {"peak_bytes_in_use": self.used, "bytes_limit": 100}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(7), Device(None)])
    assert manifest.device_memory() == (7, 100)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    assert manifest.device_memory() is None


def test_on_a_terminal_a_bar_stays_below_the_messages(tmp_path):
    console = terminal()
    with reporter(tmp_path, total_steps=2000, console=console) as run:
        run.header({"devices": "8 [gpu]", "path": "/long" * 40})
        run.train(1200, PROGRESS)
        run.message("saved [bold]step[/bold] 1200")
    shown = console.file.getvalue()
    assert "8 [gpu]" in shown
    assert shown.count("/long") + shown.count("/lon\n") >= 38  # folded, not cut off
    assert "━" in shown
    assert "step 1200/2000" in shown
    assert "loss 0.412 · lr 5.9e-05" in shown
    assert shown.index("saved [bold]step[/bold] 1200") < shown.rindex("━")


def test_without_a_terminal_header_and_messages_are_plain(tmp_path, capsys):
    with reporter(tmp_path) as run:
        run.header({"devices": "8 [gpu]", "global batch": "16", "workdir": "/long" * 40})
        run.message("resumed from step 50")
    assert capsys.readouterr().out.splitlines() == [
        "devices       8 [gpu]",
        "global batch  16",
        "workdir       " + "/long" * 40,
        "resumed from step 50",
    ]


def test_a_character_that_the_output_cannot_write_stops_no_run(tmp_path):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with reporter(tmp_path, console=rich.console.Console(file=file)) as run:
        run.train(1, PROGRESS)
        run.message("Straße")
    file.flush()
    assert b"loss 0.412" in file.buffer.getvalue()


def test_metrics_are_recorded_as_strict_json_and_for_tensorboard(tmp_path):
    with reporter(tmp_path) as run:
        run.train(10, {"loss": np.float32(0.5), "grad_norm": jax.numpy.float32(2)})
        run.train(20, {"loss": float("nan"), "grad_norm": float("inf")})
    assert lines(tmp_path) == [
        {"step": 10, "kind": "train", "loss": 0.5, "grad_norm": 2.0},
        {"step": 20, "kind": "train", "loss": None, "grad_norm": None},
    ]
    assert scalars(tmp_path) == {("train/loss", 10): 0.5, ("train/grad_norm", 10): 2.0}


def test_a_line_is_in_the_file_as_soon_as_it_is_reported(tmp_path):
    with reporter(tmp_path) as run:
        run.train(1, {"loss": 1.0})
        assert len(lines(tmp_path)) == 1


def test_a_resumed_run_records_no_step_twice(tmp_path):
    with reporter(tmp_path) as run:
        for step in range(0, 58):
            run.train(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 58, "kind": "tr')  # killed while writing
    with reporter(tmp_path, start_step=50) as run:
        for step in range(51, 61):
            run.train(step, {"loss": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == list(range(61))
    assert [line["loss"] for line in lines(tmp_path)] == [1.0] * 51 + [2.0] * 10


def test_tensorboard_is_told_where_a_run_resumed(tmp_path):
    with reporter(tmp_path, start_step=50):
        pass
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [51]  # TensorBoard drops what older files hold from there on


def test_a_run_from_scratch_drops_all_that_was_recorded(tmp_path):
    with reporter(tmp_path) as run:
        run.train(0, {"loss": 1.0})
    with reporter(tmp_path):
        assert lines(tmp_path) == []


def test_dropping_lines_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        report.drop_later_steps(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_other_processes_write_and_print_nothing(tmp_path, capsys, scores):
    with reporter(tmp_path / "run", enabled=False) as run:
        run.header({"jax": "1"})
        run.train(1, PROGRESS)
        results.report_evaluation(run, 1, scores, CLASSES)
        run.pictures(1, tmp_path)
        run.message("hello")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_an_evaluation_says_absent_where_a_score_is_undefined(tmp_path, capsys, scores):
    with reporter(tmp_path) as run:
        results.report_evaluation(run, 100, scores, CLASSES)
    assert capsys.readouterr().out.splitlines() == [
        "class           IoU  accuracy    Dice",
        "road          80.00     80.00   88.89",
        "car [small]    0.00    absent    0.00",
        "bus          absent    absent  absent",
        "aAcc 80.00 · mIoU 40.00 (2 of 3 classes) · mAcc 80.00 (1 of 3 classes)"
        " · mDice 44.44 · mFscore 88.89",
        "not in the labels: car [small], bus",
    ]


def test_an_evaluation_on_a_terminal_is_a_table(tmp_path, scores):
    console = terminal()
    with reporter(tmp_path, console=console) as run:
        results.report_evaluation(run, 100, scores, CLASSES)
    assert "│ car [small] │   0.00 │   absent │   0.00 │" in console.file.getvalue()


def test_an_evaluation_is_recorded(tmp_path, scores):
    with reporter(tmp_path) as run:
        results.report_evaluation(run, 100, scores, CLASSES)
    (line,) = lines(tmp_path)
    assert (line["step"], line["kind"], line["mIoU"], line["aAcc"]) == (100, "eval", 0.4, 0.8)
    assert line["iou"] == {"road": 0.8, "car [small]": 0.0, "bus": None}
    found = scalars(tmp_path)
    assert found["eval/mIoU", 100] == pytest.approx(0.4)
    assert found["eval_iou/road", 100] == pytest.approx(0.8)
    assert len(found) == 7  # five means and two classes: what is undefined is left out


def test_pictures_reach_tensorboard(tmp_path):
    (tmp_path / "panels" / "worst").mkdir(parents=True)
    for name, hw in (("photo.png", (4, 6)), ("worst/01_photo.png", (100, 3200))):
        Image.fromarray(np.zeros((*hw, 3), np.uint8)).save(tmp_path / "panels" / name)
    with reporter(tmp_path) as run:
        run.pictures(3, tmp_path / "panels")
    found = [value for event in events(tmp_path) for value in event.summary.value]
    assert [(v.tag, v.image.height, v.image.width) for v in found] == [
        ("eval/photo", 4, 6),
        ("eval_worst/01", 50, 1600),
    ]


def test_an_evaluation_of_nothing_is_undefined_and_still_strict(tmp_path, capsys):
    nothing = metrics.compute_scores(np.zeros((4, 4), np.int64))
    results.write_evaluation(tmp_path, nothing, CLASSES, {})
    results.print_evaluation(nothing, CLASSES)
    assert json.loads((tmp_path / "metrics.json").read_text())["mIoU"] is None
    assert "mIoU undefined (0 of 3 classes)" in capsys.readouterr().out


def test_an_evaluation_is_written_as_json_and_csv(tmp_path, scores):
    results.write_evaluation(tmp_path / "eval", scores, CLASSES, {"step": 7, "split": "val"})
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text()) == {
        "mIoU": 0.4,
        "mAcc": 0.8,
        "aAcc": 0.8,
        "mDice": 0.4444,
        "mFscore": 0.8889,
        "step": 7,
        "split": "val",
        "classes": 3,
        "classes_in_mIoU": 2,
        "classes_in_mAcc": 1,
        "pixels": 10,
    }
    with (tmp_path / "eval" / "per_class.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "iou", "acc", "dice", "pixels"],
            ["road", "0.800000", "0.800000", "0.888889", "10"],
            ["car [small]", "0.000000", "", "0.000000", "0"],
            ["bus", "", "", "", "0"],
        ]


def test_an_evaluation_is_drawn(tmp_path, scores):
    results.write_evaluation(tmp_path, scores, CLASSES, {})
    for name, chart in (
        ("confusion.png", charts.confusion_chart(scores.confusion, CLASSES)),
        ("per_class.png", charts.class_bars(scores.iou, CLASSES)),
    ):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), chart)


def test_the_manifest_says_what_a_run_was_made_with(tmp_path):
    manifest.write_manifest(
        tmp_path, {"initial_weights": "abc", "global_batch": 16, "scale": np.nan}
    )
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["versions"]["jax"] == jax.__version__
    assert set(run["versions"]) == {"python", *manifest.PACKAGES}
    assert len(run["devices"]) == jax.device_count()
    assert (run["initial_weights"], run["global_batch"], run["scale"]) == ("abc", 16, None)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_that_goes_on_keeps_what_it_was_begun_with(tmp_path):
    manifest.write_manifest(tmp_path, {"initial_weights": "abc"})
    manifest.write_manifest(tmp_path, {"weights": "def"})
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["initial_weights"] == "abc"
    assert [start["weights"] for start in run["resumed"]] == ["def"]


def test_the_git_revision_tells_of_changes_and_of_no_foreign_repository(tmp_path):
    def git(*arguments):
        name = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        command = ["git", "-C", str(tmp_path), *name, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    file = tmp_path / "report.py"
    file.write_text("1")
    assert manifest.git_revision(file) is None  # no repository
    git("init")
    assert manifest.git_revision(file) is None  # not a file of the repository
    git("add", ".")
    git("commit", "-m", "one")
    assert re.fullmatch("[0-9a-f]{40}", manifest.git_revision(file))
    file.write_text("2")
    assert re.fullmatch("[0-9a-f]{40}-dirty", manifest.git_revision(file))
