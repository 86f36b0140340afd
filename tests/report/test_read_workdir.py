"""A work directory is read as the run left it, and what is damaged in it is named."""

import shutil

import numpy as np
import pytest

from jaxseg.report.records import RunError
from jaxseg.report.run import short_names
from jaxseg.report.workdir import read_workdir
from support.small_runs import CLASSES, label_maps, write_images, write_lines, write_run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A work directory, and the scores of its evaluation."""
    root = tmp_path_factory.mktemp("small")
    samples = write_images(root / "images")
    labels = label_maps(len(samples), len(CLASSES))
    return root / "run", write_run(root / "run", samples, labels, errors=0.3)


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "run")
    return tmp_path / "run"


def read(path):
    return read_workdir("run", path)


def test_curves_scores_config_and_facts_are_read(written):
    path, scores = written
    run = read(path)
    assert run.curves["loss"].steps.tolist() == [1, 10, 20]
    np.testing.assert_array_equal(run.curves["loss"].values, [4, np.nan, 2])  # null
    assert run.curves["mIoU"].steps.tolist() == [20]
    assert run.config["optim.lr"] == 0.01
    assert (run.facts["devices"], run.facts["jax"]) == ("4 TPU v5e", "0.10.2")
    found = run.evaluation
    assert (found.step, found.classes) == (20, CLASSES)
    assert found.means["mIoU"] == scores.miou
    np.testing.assert_array_equal(found.iou, scores.iou)
    np.testing.assert_array_equal(found.counts.confusion, scores.confusion)


def test_counts_are_those_of_the_evaluation_in_the_tables(copied):
    # As after `jaxseg eval --workdir RUN`, whose best checkpoint is not the last one.
    samples = write_images(copied.parent / "images")
    labels = label_maps(len(samples), len(CLASSES))
    write_run(copied, samples, labels, errors=0.1, step=40)
    scores = write_run(copied, samples, labels, errors=0.3, step=20)
    assert read(copied).evaluation.step == 20
    assert read(copied).evaluation.means["mIoU"] == scores.miou


def test_an_older_run_has_scores_without_counts(copied):
    expected = read(copied).evaluation
    (copied / "predictions/step_000020/per_image.npz").unlink()
    found = read(copied).evaluation
    assert found.counts is None
    assert "jaxseg eval --workdir" in found.missing
    assert found.step == 20
    np.testing.assert_allclose(found.iou, expected.iou, atol=1e-6)


def test_a_run_without_an_evaluation_has_curves(copied):
    (copied / "per_class.csv").unlink()
    assert read(copied).evaluation is None
    assert read(copied).curves["loss"].steps.size == 3


def test_an_evaluation_without_training_has_scores(copied):
    (copied / "metrics.jsonl").unlink()
    assert not read(copied).curves
    assert read(copied).evaluation.step == 20


def test_a_folder_that_is_no_work_directory_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"neither metrics\.jsonl nor per_class\.csv"):
        read(tmp_path)
    with pytest.raises(RunError, match="is no work directory"):
        read(tmp_path / "nothing")


GOOD = {"step": 1, "kind": "train", "loss": 1.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metrics\.jsonl, line 2 is not JSON: Expecting"),
        ("[1]", r"line 2 holds no JSON object"),
        ({"kind": "train"}, r"line 2 has no step: None"),
        ({"kind": "train", "step": -1}, r"line 2 has no step: -1"),
        ({"kind": "other", "step": 1}, r"line 2 is of kind 'other'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    write_lines(tmp_path / "metrics.jsonl", GOOD, line, GOOD)
    with pytest.raises(RunError, match=message):
        read(tmp_path)


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", GOOD)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ki')
    assert read(tmp_path).curves["loss"].steps.tolist() == [1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json is not JSON"),
        ("run.json", "[]", r"run\.json holds no JSON object"),
        ("run.json", '{"devices": 8}', r"run\.json has an entry of another type"),
        ("per_class.csv", "class,iou\nroad,0.5\n", r"row 1 has no column 'pixels'"),
        ("predictions/step_000020/per_image.npz", "x", r"is not a file of counts per image"),
    ],
)
def test_a_damaged_file_is_named(copied, file, content, message):
    (copied / file).write_text(content)
    with pytest.raises(RunError, match=message):
        read(copied)


def test_names_are_as_short_as_they_may_be(tmp_path):
    paths = [tmp_path / "x/a", tmp_path / "x/b", tmp_path / "y/b"]
    assert short_names(paths) == ["a", "x/b", "y/b"]
    with pytest.raises(RunError, match="is given twice"):
        short_names([tmp_path / "a", tmp_path / "x/../a"])
