"""Full and read-only disks: every program says so, with status 1, and leaves no half files."""

import contextlib
import pathlib
import re
import subprocess

import cv2
import jax
import numpy as np
import pytest

from jaxseg import predict, show
from jaxseg.atomic_files import write_png
from jaxseg.checkpoints.weights import save_weights
from jaxseg.errors import OutputError
from jaxseg.models.segmentation_model import build_model, init_variables
from support.runs import failure, run
from support.tiny import smallest_config

pytestmark = pytest.mark.long


@contextlib.contextmanager
def disk(folder, *options):
    """A file system in memory, mounted on the folder."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs the rights of root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def full(tmp_path):
    """A disk of 64 kB with 4 kB left."""
    with disk(tmp_path / "full", "size=64k") as folder:
        (folder / "rest").write_bytes(bytes(60 << 10))
        yield folder


@pytest.fixture
def read_only(tmp_path):
    with disk(tmp_path / "read_only", "size=64k", "ro") as folder:
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of a run that has weights alone."""
    config, directory = smallest_config(), tmp_path_factory.mktemp("model") / "run"
    module = build_model(config.model)
    variables = jax.jit(init_variables, static_argnums=(0, 2))(module, jax.random.key(0), (64, 128))
    save_weights(directory, variables, config.to_dict())
    return directory


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 128, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{seed}.png"), noise)
    return folder


def exit_message(call, *arguments):
    with pytest.raises(SystemExit) as stopped:
        call(list(map(str, arguments)))
    assert isinstance(stopped.value.code, str)  # printed, and the status is 1
    return stopped.value.code


def test_prediction_onto_a_full_disk_names_the_file(model, images, full):
    said = exit_message(predict.main, "--checkpoint", model, "--out", full, images)
    # Several threads write, so that any of the pictures may be the first one without room.
    path = rf"{re.escape(str(full))}/\d_(overlay|classes)\.png"
    assert re.search(rf"cannot write {path}: No space left on device; free some space", said), said
    assert all(file.stat().st_size for file in full.iterdir())
    assert not list(full.glob("*.partial"))


@pytest.mark.parametrize("below", ["", "new/deep"])
def test_prediction_onto_a_read_only_disk_is_refused(model, images, read_only, below):
    said = exit_message(predict.main, "--checkpoint", model, "--out", read_only / below, images)
    assert f"cannot write {read_only / below}/0_classes.png: Read-only file system" in said


def test_prediction_below_a_file_is_refused(model, images, tmp_path):
    (tmp_path / "taken").touch()
    said = exit_message(predict.main, "--checkpoint", model, "--out", tmp_path / "taken", images)
    assert "a part of this path is a file" in said


def test_a_picture_replaces_another_whole_or_not_at_all(full):
    write_png(full / "a.png", np.zeros((8, 8), np.uint8))
    before = (full / "a.png").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    with pytest.raises(OutputError, match="No space left"):
        write_png(full / "a.png", noise)
    assert (full / "a.png").read_bytes() == before


def test_samples_that_cannot_be_written_are_an_error(scenes, read_only):
    config = smallest_config()
    config.data.root = str(scenes)
    with pytest.raises(OutputError, match=r"samples\.png: Read-only file system"):
        show.show(config, read_only)


def test_weights_that_cannot_be_saved_are_an_error(full):
    weights = np.random.default_rng(0).random((1 << 17,), np.float32)
    with pytest.raises(OutputError, match=f"cannot write {full}"):
        save_weights(full / "run", {"params": {"w": weights}, "batch_stats": {}}, {"model": {}})


def test_an_evaluation_that_cannot_be_written_ends_with_the_reason(command, model, full):
    evaluation = command(full / "e", "--mode", "eval", "--checkpoint", str(model))
    assert f"cannot write {full}/e/" in failure(evaluation)


@pytest.mark.full
def test_a_run_that_fills_its_disk_ends_with_the_reason_and_resumes_elsewhere(command, tmp_path):
    changes = {"steps": 60, "eval.every_steps": 100, "checkpoint.every_steps": 10}
    with disk(tmp_path / "small", "size=700k") as folder:
        said = failure(command(folder / "run", **changes))
        *_, reason, page = said.strip().splitlines()
        assert reason.startswith("jaxseg: cannot ")
        assert str(folder) in reason
        assert "docs/guides/troubleshooting.md" in page
        subprocess.run(["cp", "-r", folder / "run", tmp_path / "moved"], check=True)
    said = run(command(pathlib.Path(tmp_path / "moved"), **changes))
    assert "resumed" in said
