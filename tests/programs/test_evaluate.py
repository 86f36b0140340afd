"""Evaluation over devices counts every image once, whatever their number and sizes."""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg import train
from jaxseg.checkpoints.resuming import config_differences
from jaxseg.checkpoints.weights import save_weights
from jaxseg.config import load_config, override_config
from jaxseg.data import submission
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.samples import read_sample
from jaxseg.data.source import find_samples
from jaxseg.data.synthetic.writer import write_street_scenes
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError, DataError
from jaxseg.evaluate import evaluate_checkpoint, write_submission
from jaxseg.evaluation import metrics
from jaxseg.evaluation.boundaries import boundary_counts
from jaxseg.evaluation.calibration import calibration_counts, expected_calibration_error
from jaxseg.evaluation.evaluator import Stopped, evaluate, measure_names
from jaxseg.evaluation.results import write_evaluation
from jaxseg.inference.predictor import make_predictor
from jaxseg.models.segmentation_model import build_model, variable_shapes
from support.tiny import initial_state, tiny_config

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A config, model and variables; five images of two sizes."""
    root = tmp_path_factory.mktemp("two_sizes")
    write_street_scenes(root / "wide", train=1, val=3, image_hw=(64, 128))
    write_street_scenes(root / "narrow", train=1, val=2, image_hw=(64, 96))
    for kind in ("leftImg8bit", "gtFine"):
        (root / kind).mkdir()
        (root / kind / "val").mkdir()
        for folder in ("wide", "narrow"):
            for city in (root / folder / kind / "val").iterdir():
                city.rename(root / kind / "val" / f"{folder}_{city.name}")
    config = tiny_config(**{"data.root": str(root)})
    return (
        config,
        build_model(config.model),
        jax.tree.map(np.asarray, initial_state().variables()),
    )


def expected_scores(config, model, variables):
    """One image after the other on one device, by their probabilities."""
    total = np.zeros((20, 20), np.int64)
    mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1])
    predictor = make_predictor(model, variables, config, mesh)
    for sample in find_samples("cityscapes", config.data.root, "val"):
        image, label = read_sample(sample)
        prediction = np.argmax(predictor.probabilities(image), axis=-1)
        label = label.astype(np.int32)
        labeled = label != 255
        np.add.at(total, (label[labeled], prediction[labeled]), 1)
    return metrics.compute_scores(total)


SLIDE = {"mode": "slide", "crop_hw": (48, 64), "stride_hw": (32, 40)}
WAYS = {"whole": {}, "slide": SLIDE, "slide in several views": SLIDE | {"protocol": "ms"}}


def in_the_way_of(config, way):
    config = config.copy_and_resolve_references()
    config.eval.ms.ratios = (0.5, 1.0)
    config.eval.update(way)
    return config


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=[pytest.mark.full] * (name == "slide"))
        for name, way in WAYS.items()
    ],
)
def test_scores_do_not_depend_on_the_devices(setting, tmp_path, way):
    config, model, variables = setting
    config = in_the_way_of(config, way)
    expected = expected_scores(config, model, variables)
    assert expected.pixels.sum() > 0
    for devices in (1, 8):
        mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:devices])
        scores = evaluate(model, variables, config, mesh, pictures=tmp_path / str(devices))
        np.testing.assert_array_equal(scores.pixels, expected.pixels)
        np.testing.assert_allclose(scores.iou, expected.iou, atol=2e-4)  # ties in the argmax
        assert len(list((tmp_path / str(devices)).glob("*.png"))) == config.eval.pictures


def test_the_worst_images_are_drawn_and_all_are_listed(setting, tmp_path):
    config, model, variables = setting
    samples = find_samples("cityscapes", config.data.root, "val")
    mesh = make_mesh({"data": -1, "fsdp": 1})
    predictor = make_predictor(model, variables, config, mesh)
    expected = {}
    for sample in samples:
        image, label = read_sample(sample)
        (class_map,) = predictor.class_maps([image])
        counts = metrics.confusion_matrix(class_map, label, 19)
        expected[str(sample.image)] = metrics.compute_scores(counts).miou
    evaluate(model, variables, config, mesh, pictures=tmp_path)
    with (tmp_path / "images.csv").open(newline="") as file:
        listed = {row["image"]: float(row["iou"]) for row in csv.DictReader(file)}
    assert list(listed.values()) == sorted(listed.values())
    assert listed == pytest.approx(expected, abs=2e-3)  # ties in the argmax
    (worst,) = (tmp_path / "worst").iterdir()  # as many as config.eval.pictures
    name = pathlib.Path(next(iter(listed))).name.removesuffix("_leftImg8bit.png")
    assert worst.name == f"01_{name}.png"


def test_measures_are_added_to_the_scores(setting, tmp_path):
    config, model, variables = setting
    config = config.copy_and_resolve_references()
    config.eval.measures = ("boundary_iou", "calibration")
    mesh = make_mesh({"data": -1, "fsdp": 1})
    scores = evaluate(model, variables, config, mesh)
    predictor = make_predictor(model, variables, config, mesh)
    near, calibrated = np.zeros((3, 19)), np.zeros((3, 15))
    for sample in find_samples("cityscapes", config.data.root, "val"):
        image, label = read_sample(sample)
        probabilities = predictor.probabilities(image)
        near += boundary_counts(probabilities.argmax(axis=-1).astype(np.uint8), label, 19)
        calibrated += calibration_counts(probabilities, label)
    np.testing.assert_array_equal(scores.boundary_iou, metrics.class_iou(*near))
    np.testing.assert_allclose(scores.calibration, calibrated, rtol=1e-6)
    names = [f"class {k}" for k in range(19)]
    write_evaluation(tmp_path, scores, names, {})
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["ECE"] == pytest.approx(expected_calibration_error(calibrated), abs=1e-4)
    assert found["boundary_mIoU"] == pytest.approx(np.nanmean(scores.boundary_iou), abs=1e-4)
    assert "boundary_iou" in (tmp_path / "per_class.csv").read_text().splitlines()[0]
    assert (tmp_path / "reliability.png").is_file()
    override_config(config, ["--config.eval.measures=boundary_iou,calibration"])
    assert measure_names(config) == ("boundary_iou", "calibration")
    mask2former = load_config("configs/ade20k.py:mask2former_beit_adapter_l")
    mask2former.eval.measures = ("calibration",)
    with pytest.raises(ConfigError, match="Mask2Former are sums over queries"):
        measure_names(mask2former)
    write_evaluation(tmp_path, dataclasses.replace(scores, calibration=None), names, {})
    assert not (tmp_path / "reliability.png").exists()
    config.eval.measures = ("hausdorff",)
    with pytest.raises(ConfigError, match="measures=hausdorff: there are boundary_iou, calib"):
        evaluate(model, variables, config, mesh)


def test_a_saved_run_is_evaluated_by_the_protocol_of_the_overrides(setting, tmp_path, capsys):
    config, model, variables = setting
    save_weights(tmp_path / "run", variables, config.to_dict())
    changes = SLIDE | {"protocol": "ms", "ms.ratios": (0.5, 1.0)}
    overrides = [f"--config.eval.{key}={value}" for key, value in changes.items()]
    evaluate_checkpoint(tmp_path / "run", tmp_path / "out", overrides=overrides)
    slid = in_the_way_of(config, SLIDE | {"protocol": "ms"})
    expected, whole = (expected_scores(c, model, variables).miou for c in (slid, config))
    assert f"{expected:.3f}" != f"{whole:.3f}"
    assert f"val mIoU = {expected:.3f}" in capsys.readouterr().out


def test_a_split_without_labels_is_predicted_and_written_for_the_server(setting, tmp_path):
    config, model, variables = setting
    save_weights(tmp_path / "run", variables, config.to_dict())
    samples = find_samples("cityscapes", config.data.root, "val")
    names = [f"bonn_{index:06d}_000019_leftImg8bit.png" for index in range(len(samples))]
    folder = tmp_path / "leftImg8bit" / "test" / "bonn"
    folder.mkdir(parents=True)
    for name, sample in zip(names, samples, strict=True):
        (folder / name).symlink_to(sample.image)
    mesh = make_mesh({"data": -1, "fsdp": 1})
    predicted = {}
    evaluate(
        *(model, variables, config, mesh),
        on_image=lambda index, _, class_map: predicted.update({index: class_map}),
    )
    overrides = [f"--config.data.root={tmp_path}", "--config.data.val_split=test"]
    write_submission(tmp_path / "run", tmp_path / "out", overrides=overrides)
    written = sorted((tmp_path / "out" / "submission").iterdir())
    assert [path.name for path in written] == names
    for index, path in enumerate(written):
        with Image.open(path) as picture:
            raw = np.asarray(picture)
        np.testing.assert_array_equal(raw, submission.cityscapes_ids()[predicted[index]])


def test_images_that_would_be_one_file_are_refused(setting, tmp_path):
    config, _, variables = setting  # of two folders, with images of the same names
    save_weights(tmp_path / "run", variables, config.to_dict())
    with pytest.raises(DataError, match="would both be written as oberfurt_000000_000019"):
        write_submission(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_official_evaluation_of_cityscapes_gives_the_same_miou(setting, scenes, tmp_path):
    config, _, variables = setting
    config = config.copy_and_resolve_references()
    config.data.root = str(scenes)
    # A head that tells classes apart: initial weights give one class to nearly all pixels.
    rng = np.random.default_rng(0)
    classifier = variables["params"]["decode_head"]["conv_seg"]
    spread = {
        name: rng.standard_normal(leaf.shape, np.float32) for name, leaf in classifier.items()
    }
    head = variables["params"]["decode_head"] | {"conv_seg": spread}
    variables = variables | {"params": variables["params"] | {"decode_head": head}}
    save_weights(tmp_path / "run", variables, config.to_dict())
    scores = evaluate_checkpoint(tmp_path / "run", tmp_path / "scores")
    write_submission(tmp_path / "run", tmp_path)

    program = (
        "from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official\n"
        "official.args.evalInstLevelScore = False  # these scenes have no instances\n"
        "official.main()"
    )
    folders = {"DATASET": scenes, "RESULTS": tmp_path / "submission"}
    folders["EXPORT_DIR"] = tmp_path
    environment = os.environ | {f"CITYSCAPES_{name}": str(path) for name, path in folders.items()}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    result = json.loads((tmp_path / "resultPixelLevelSemanticLabeling.json").read_text())
    assert np.count_nonzero(scores.iou) > 5
    assert round(100 * result["averageScoreClasses"], 2) == round(100 * scores.miou, 2)
    for name, iou in zip(CITYSCAPES.classes, scores.iou, strict=True):
        np.testing.assert_allclose(result["classScores"][name], iou, rtol=1e-12)


def test_a_dataset_without_a_server_is_refused(setting, tmp_path):
    config, _, variables = setting
    save_weights(tmp_path / "run", variables, config.to_dict())
    overrides = ["--config.data.val_dataset=potsdam"]
    with pytest.raises(ConfigError, match="no format for submissions of potsdam"):
        write_submission(tmp_path / "run", tmp_path / "out", overrides=overrides)


def test_another_dataset_may_be_evaluated_on_than_trained_on(setting):
    config, model, variables = setting
    mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1])
    expected = evaluate(model, variables, config, mesh)
    other = tiny_config(
        **{
            "data.dataset": "mapillary_to_cityscapes",
            "data.root": "/nowhere",
            "data.val_dataset": "cityscapes",
            "data.val_root": config.data.root,
        }
    )
    train.check(other, mesh)
    np.testing.assert_array_equal(evaluate(model, variables, other, mesh).iou, expected.iou)


def test_classes_evaluated_must_be_those_trained():
    config = tiny_config(**{"data.val_dataset": "ade20k"})
    mesh = make_mesh({"data": -1, "fsdp": 1})
    with pytest.raises(ConfigError, match="val_dataset=ade20k: its 150 classes are not the 19 of"):
        train.check(config, mesh)


def test_a_run_goes_on_with_another_evaluation_but_not_with_other_data():
    saved = json.loads(json.dumps(tiny_config().to_dict()))
    evaluation = {"val_dataset": "ade20k", "val_root": "x", "val_split": "y", "test_multiple": 32}
    changes = {f"data.{key}": value for key, value in evaluation.items()}
    assert not config_differences(saved, tiny_config(**changes).to_dict())
    changes = {"data.dataset": "ade20k", "data.train_split": "training"}
    different = config_differences(saved, tiny_config(**changes).to_dict())
    assert [line.split(":")[0] for line in different] == ["data.dataset", "data.train_split"]


@pytest.mark.parametrize("masked", [False, True])
def test_outputs_beyond_the_classes_are_errors_unless_masked(setting, masked):
    """As the published Cityscapes heads, which have 150 outputs."""
    config = tiny_config(**{"data.root": setting[0].data.root, "model.decode_head.num_classes": 25})
    config.eval.mask_absent_classes = masked
    model = build_model(config.model)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variable_shapes(model))
    # Every pixel is output 20, which is no class, or without it road.
    variables["params"]["decode_head"]["conv_seg"]["bias"][[0, 20]] = 1, 2
    mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1])
    scores = evaluate(model, variables, config, mesh)
    road = scores.pixels[0] / scores.pixels.sum()
    assert scores.aacc == pytest.approx(road if masked else 0)
    assert scores.outside == (0 if masked else 1)


def test_it_stops_when_asked(setting):
    config, model, variables = setting
    mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1])
    with pytest.raises(Stopped):
        evaluate(model, variables, config, mesh, stop=lambda: True)
