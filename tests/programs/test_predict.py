"""Masks for images from a run's directory alone; and what `--mode show` shows."""

import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from jaxseg.checkpoints.weights import save_weights
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import CheckpointError, DataError
from jaxseg.inference.predictor import make_predictor
from jaxseg.models.segmentation_model import build_model, init_variables
from jaxseg.predict import find_images, main
from jaxseg.segmenter import Segmenter
from support.runs import ROOT, failure, run
from support.tiny import tiny_config

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    run(command(workdir))
    return workdir


def test_files_and_folders_become_class_maps_and_overlays(trained, scenes, tmp_path):
    images = tmp_path / "in" / "deep"
    images.mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    cv2.imwrite(str(images / "a.jpg"), image)
    cv2.imwrite(str(tmp_path / "b.png"), image)
    main(
        ["--checkpoint", str(trained), "--out", str(tmp_path / "out")]
        + [str(tmp_path / "in"), str(tmp_path / "b.png")]
    )
    for name in ("deep/a", "b"):
        classes = cv2.imread(str(tmp_path / "out" / f"{name}_classes.png"), cv2.IMREAD_UNCHANGED)
        assert classes.shape == image.shape[:2]
        assert classes.max() < 19
        assert (tmp_path / "out" / f"{name}_overlay.png").exists()
    segmenter = Segmenter.from_checkpoint(trained)
    decoded = np.ascontiguousarray(cv2.imread(str(tmp_path / "b.png"))[..., ::-1])
    np.testing.assert_array_equal(segmenter(decoded).classes, classes)
    probabilities = np.asarray(segmenter.probabilities(decoded))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


@pytest.mark.full
def test_a_model_evaluated_in_windows_predicts_in_windows(tmp_path):
    windows = {"crop_hw": (48, 64), "stride_hw": (32, 40)}
    config = tiny_config(**{f"eval.{key}": value for key, value in windows.items()})
    config.eval.mode = "slide"
    model = build_model(config.model)
    variables = jax.jit(init_variables, static_argnums=(0, 2))(model, jax.random.key(0), (64, 128))
    save_weights(tmp_path / "run", variables, config.to_dict())
    image = np.random.default_rng(0).integers(0, 256, (70, 110, 3)).astype(np.uint8)
    found = Segmenter.from_checkpoint(tmp_path / "run").probabilities(image)

    bgr = np.ascontiguousarray(image[..., ::-1])
    mesh = make_mesh({"data": -1, "fsdp": 1})
    slid = make_predictor(model, variables, config, mesh).probabilities(bgr)
    np.testing.assert_allclose(found, slid, atol=1e-5)
    config.eval.mode = "whole"
    whole = make_predictor(model, variables, config, mesh).probabilities(bgr)
    assert np.abs(found - whole).max() > 1e-3


@pytest.mark.usefixtures("unchecked_types")
def test_only_rgb_images_are_taken(trained):
    with pytest.raises(ValueError, match="RGB uint8"):
        Segmenter.from_checkpoint(trained)(np.zeros((8, 8), np.uint8))


def test_inputs_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png does not exist"):
        find_images([str(tmp_path / "nothing.png")])
    with pytest.raises(DataError, match="no images"):
        find_images([str(tmp_path)])
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").touch()
    with pytest.raises(DataError, match="both be written as same"):
        find_images([str(tmp_path / "x"), str(tmp_path / "y")])


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Segmenter.from_checkpoint(tmp_path)
    cv2.imwrite(str(tmp_path / "y.png"), np.zeros((8, 8, 3), np.uint8))
    program = [sys.executable, "-m", "jaxseg.predict", "--checkpoint", str(tmp_path)]
    call = [*program, "--out", "x", str(tmp_path / "y.png")]
    assert "no checkpoint in" in failure({"args": call, "cwd": ROOT, "text": True})


def test_help_of_the_command_line():
    call = [sys.executable, "-m", "jaxseg.predict", "--help"]
    assert "IMAGE|FOLDER" in subprocess.run(call, cwd=ROOT, capture_output=True, text=True).stdout


def test_the_biases_of_many_layers_are_not_held_at_once():
    """Each is a large array made of a small one; one of eight is there at a time."""
    index = np.random.default_rng(0).integers(0, 100, (512, 512))

    def layers(tables, x):
        for table in tables:
            x = x @ table[index]
        return x

    tables, x = np.ones((8, 100), np.float32), np.ones((1, 512), np.float32)
    memory = jax.jit(layers).lower(tables, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * index.size * 4
