"""Logs of mmsegmentation are read, with the steps at which it evaluated."""

import numpy as np
import pytest

from jaxseg.report.mmseg_log import is_mmseg_log, read_mmseg_log
from jaxseg.report.records import RunError
from support.small_runs import write_lines

ENVIRONMENT = {
    "env_info": "sys.platform: linux\nGPU 0,1: A100\nPyTorch: 1.11.0\n"
    "PyTorch compiling details: PyTorch built with:\n  - GCC 7.3\n",
    "seed": 0,
    "exp_name": "internimage.py",
    "mmseg_version": "0.27.0",
}


def train(step, **others):
    line = {"mode": "train", "epoch": 1, "iter": step, "lr": 6e-5, "memory": 9000, "time": 0.5}
    return line | {"decode.loss_ce": 0.75, "decode.acc_seg": 71.0, "aux.loss_ce": 0.25} | others


def evaluation(miou, *, images=500, **classes):
    line = {"mode": "val", "epoch": 1, "iter": images, "lr": 6e-5, "mIoU": miou, "mAcc": 0.6}
    return line | {"aAcc": 0.9} | {f"IoU.{name}": iou for name, iou in classes.items()}


def read(tmp_path, *lines):
    write_lines(tmp_path / "x.log.json", *lines)
    return read_mmseg_log("x", tmp_path / "x.log.json")


def test_curves_have_the_names_of_ours(tmp_path):
    run = read(tmp_path, ENVIRONMENT, train(50, loss=1.0), train(100, loss=0.5))
    assert run.curves["loss"].steps.tolist() == [50, 100]
    assert run.curves["loss"].values.tolist() == [1.0, 0.5]
    expected = {"decode_loss": 0.75, "auxiliary_loss": 0.25, "learning_rate": 6e-5}
    for name, value in (expected | {"step_seconds": 0.5}).items():
        assert run.curves[name].values.tolist() == [value, value]
    assert run.evaluation is None


def test_an_evaluation_is_at_the_step_of_the_line_before_it(tmp_path):
    # Its own `iter` counts the batches of the evaluation.
    lines = [train(16000, loss=1.0), evaluation(0.4, road=0.7), train(16050, loss=1.0)]
    run = read(tmp_path, ENVIRONMENT, *lines, train(32000, loss=1.0), evaluation(0.5, road=0.8))
    assert run.curves["mIoU"].steps.tolist() == [16000, 32000]
    assert run.curves["mIoU"].values.tolist() == [0.4, 0.5]
    found = run.evaluation
    assert (found.step, found.classes, found.iou.tolist()) == (32000, ("road",), [0.8])
    assert found.means == {"mIoU": 0.5, "mAcc": 0.6, "aAcc": 0.9}


def test_percent_become_shares(tmp_path):
    percent = evaluation(50.0, road=80.0) | {"mAcc": 60.0, "aAcc": 90.0}
    found = read(tmp_path, train(50, loss=1.0), percent).evaluation
    assert found.means == {"mIoU": 0.5, "mAcc": 0.6, "aAcc": 0.9}
    assert found.iou.tolist() == [0.8]


def test_nan_is_a_gap(tmp_path):
    run = read(tmp_path, train(50, loss=float("nan")), train(100, loss=0.5))
    np.testing.assert_array_equal(run.curves["loss"].values, [np.nan, 0.5])


def test_a_resumed_run_replaces_later_steps(tmp_path):
    lines = [train(step, loss=loss) for step, loss in ((50, 4), (100, 3), (150, 2), (100, 1))]
    run = read(tmp_path, *lines)
    assert run.curves["loss"].steps.tolist() == [50, 100]
    assert run.curves["loss"].values.tolist() == [4, 1]


def test_versions_and_devices_are_those_of_the_first_line(tmp_path):
    facts = read(tmp_path, ENVIRONMENT, train(50, loss=1.0)).facts
    assert facts["devices"] == "A100"
    assert (facts["PyTorch"], facts["mmseg_version"], facts["seed"]) == ("1.11.0", "0.27.0", "0")


def test_a_file_that_is_no_log_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no line of mode train or val"):
        read(tmp_path, {"a": 1})
    with pytest.raises(RunError, match=r"line 2 has no step: None"):
        read(tmp_path, train(50, loss=1.0), train(None, loss=1.0))
    with pytest.raises(RunError, match=r"cannot read .*nothing\.json"):
        read_mmseg_log("x", tmp_path / "nothing.json")


def test_logs_are_known_by_their_suffix(tmp_path):
    assert is_mmseg_log(tmp_path / "20221111_000000.log.json")
    assert not is_mmseg_log(tmp_path / "run")
