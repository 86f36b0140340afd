"""From a PyTorch file to a run and back: the same weights, and what was not taken is said."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from converters import convert, export_torch, torch_weights, verify
from converters.fill import fill
from converters.torch_files import torch_file, torch_writer
from jaxseg import parameter_paths
from jaxseg.checkpoints import initial_weights
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device
from jaxseg.config import load_config
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.segmentation_model import build_model, init_variables
from jaxseg.segmenter import Segmenter
from support.runs import ROOT, failure, run
from support.tiny import tiny_config
from support.tiny_datasets import OWN_CONFIG

pytestmark = pytest.mark.long

CLASSES = {"model.decode_head.num_classes": 7, "model.auxiliary_head.num_classes": 7}


@pytest.fixture(scope="module")
def tensors():
    return verify.filled_state_dict(tiny_config())


@pytest.fixture(scope="module")
def published(tensors, tmp_path_factory):
    """A checkpoint as the originals publish them."""
    path = tmp_path_factory.mktemp("published") / "model.pth"
    torch_writer.write_torch_file(path, tensors)
    return path


def run_of(published, config_file, output, *options):
    arguments = ["--checkpoint", str(published), "--config", config_file, "--output", str(output)]
    convert.main([*arguments, *options])
    return output


def stored(run):
    """The variables of a run by path, as they are stored."""
    model = build_model(tiny_config().model)
    return parameter_paths.by_path(load_on_device(find_checkpoint(run), model))


def fresh(config):
    """Initialized variables over all devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model = build_model(config.model)
    init = lambda: init_variables(model, jax.random.key(1), (64, 64))  # noqa: E731
    return jax.jit(init, out_shardings=everywhere)()


def test_converted_weights_are_those_of_the_file(published, tensors, config_file, tmp_path, capsys):
    variables = stored(run_of(published, config_file, tmp_path / "run"))
    expected = parameter_paths.by_path(torch_weights.from_state_dict(tensors, tiny_config()))
    assert variables.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(variables[path], value, err_msg=path)
    report = json.loads((tmp_path / "run" / "conversion.json").read_text())
    assert set(report["used"]) == set(tensors)
    assert f"used    {len(tensors):>6}" in capsys.readouterr().out


def test_bfloat16_halves_the_weights_and_keeps_statistics(
    published, tensors, config_file, tmp_path
):
    variables = stored(run_of(published, config_file, tmp_path / "run", "--dtype", "bfloat16"))
    for path, value in parameter_paths.by_path(
        torch_weights.from_state_dict(tensors, tiny_config())
    ).items():
        kept = value if path.startswith("batch_stats") else value.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(variables[path], kept.astype(np.float32), err_msg=path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip_is_exact(published, tensors, config_file, tmp_path, suffix):
    run_of(published, config_file, tmp_path / "run")
    back = tmp_path / f"back{suffix}"
    export_torch.main(["--checkpoint", str(tmp_path / "run"), "--output", str(back)])
    written = torch_file.read_torch_file(back)
    if suffix == ".pth":  # what mmsegmentation asks for besides
        assert written["meta"]["CLASSES"][:2] == ("road", "sidewalk")
        assert written["meta"]["PALETTE"][1] == (244, 35, 232)
    written = written.get("state_dict", written)
    counters = {name for name in written if name.endswith("num_batches_tracked")}
    assert len(counters) == sum(name.endswith("running_var") for name in tensors)
    assert written.keys() - counters == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_converted_run_predicts(published, config_file, tmp_path):
    segment = Segmenter.from_checkpoint(run_of(published, config_file, tmp_path / "run"))
    found = segment(np.zeros((64, 128, 3), np.uint8))
    assert found.classes.shape == (64, 128)


def test_pretrained_backbone_gets_fresh_heads(tensors, config_file, tmp_path, capsys):
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    classifier = {
        "head.weight": fill("head.weight", (10, 64)),
        "head.bias": fill("head.bias", (10,)),
    }
    torch_writer.write_torch_file(tmp_path / "pretrained.safetensors", backbone | classifier)
    run_of(tmp_path / "pretrained.safetensors", config_file, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "there is no decode_head" in printed
    assert "classifier of the pre-training" in printed
    variables = stored(tmp_path / "run")
    kernel = variables["params/decode_head/conv_seg/kernel"]
    assert 0.005 < kernel.std() < 0.02  # drawn with 0.01
    stem = variables["params/backbone/patch_embed/conv1/bias"]
    np.testing.assert_array_equal(stem, tensors["backbone.patch_embed.conv1.bias"])


def test_output_that_has_checkpoints_is_left_alone(published, config_file, tmp_path):
    run_of(published, config_file, tmp_path / "run")
    with pytest.raises(SystemExit, match="already has checkpoints; choose another directory"):
        run_of(published, config_file, tmp_path / "run")


def test_output_that_is_a_file_is_refused(published, config_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="is a file; choose a directory"):
        run_of(published, config_file, tmp_path / "file")


def test_file_in_the_place_of_a_run_is_to_be_converted_first(published):
    with pytest.raises(CheckpointError, match="checkpoint first: jaxseg convert"):
        Segmenter.from_checkpoint(published)


def test_converted_run_is_evaluated_with_changed_settings(
    published, config_file, scenes, tmp_path, command
):
    run_of(published, config_file, tmp_path / "run")
    call = command(tmp_path / "out", "--mode=eval", f"--checkpoint={tmp_path / 'run'}")
    # Without --config, and so with that of the checkpoint.
    file = call["args"].index("--config")
    overrides = [f"--config.data.root={scenes}", "--config.data.workers=0"]
    kept = [a for a in call["args"][:file] + call["args"][file + 2 :] if "--config." not in a]
    assert "val mIoU" in run(call | {"args": kept + overrides})
    message = failure(call | {"args": [*kept, "--config.data.rot=x"]})
    assert "no such key: 'rot'" in message


def test_published_name_is_looked_up_in_the_cache(published, tmp_path, monkeypatch, config_file):
    name = "upernet_internimage_t_512x1024_160k_cityscapes"
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{name}.pth").symlink_to(published)
    run = tmp_path / "run"
    convert.main(["--zoo", name, "--config", config_file, "--output", str(run)])
    assert stored(run)
    # Its own config is the default, and of another size than what lies there.
    with pytest.raises(SystemExit, match="is of another model than upernet_internimage_t"):
        convert.main(["--zoo", name, "--output", str(tmp_path / "other")])


@pytest.mark.parametrize("kind", ["file", "run"])
def test_training_starts_from_it_with_another_number_of_classes(
    published, tensors, config_file, tmp_path, kind
):
    source = published if kind == "file" else run_of(published, config_file, tmp_path / "run")
    before = fresh(tiny_config(**CLASSES))
    variables, origin = initial_weights.load_initial_weights(str(source), before, "tiny")
    assert "4 tensors as initialized: another number of classes" in origin
    expected = parameter_paths.by_path(torch_weights.from_state_dict(tensors, tiny_config()))
    before = parameter_paths.by_path(before)
    for path, value in parameter_paths.by_path(variables).items():
        wanted = before[path] if "/conv_seg/" in path else expected[path]
        np.testing.assert_array_equal(value, wanted, err_msg=path)
        assert value.sharding == before[path].sharding


def test_start_that_does_not_exist_says_what_could_be_one():
    with pytest.raises(ConfigError, match=r"config\.init=nowhere\.pth: there is no such file"):
        initial_weights.load_initial_weights("nowhere.pth", fresh(tiny_config()), "tiny")


def test_start_with_another_backbone_is_refused(published, config_file, tmp_path):
    before = fresh(tiny_config(**{"model.backbone.channels": 16}))
    run_of(published, config_file, tmp_path / "run")
    for source in (published, tmp_path / "run"):
        with pytest.raises(CheckpointError, match="is of another model"):
            initial_weights.load_initial_weights(str(source), before, "tiny")


@pytest.mark.full
def test_program_trains_from_a_published_file(command, published, tmp_path):
    printed = run(command(tmp_path / "run", model="tiny", init=published, steps=2))
    assert f"tensors of {published}" in printed
    assert "val mIoU" in printed


def test_converted_run_is_no_work_directory_and_says_so(command, published, config_file, tmp_path):
    converted = run_of(published, config_file, tmp_path / "run")
    message = failure(command(converted, model="tiny"))
    assert f"--config.init={converted} and another --workdir" in message


def test_a_model_of_ones_own_classes_is_converted_with_their_names(tmp_path):
    (tmp_path / "own.py").write_text(OWN_CONFIG.format(tests=str(ROOT / "tests")))
    (tmp_path / "names.txt").write_text("ground\nbox\ntree\n")
    classes = f"--config.data.classes={tmp_path / 'names.txt'}"
    config = load_config(str(tmp_path / "own.py"), [classes])
    torch_writer.write_torch_file(tmp_path / "own.pth", verify.filled_state_dict(config))
    recipe = ["--config", str(tmp_path / "own.py"), classes]
    convert.main(
        ["--checkpoint", str(tmp_path / "own.pth"), "--output", str(tmp_path / "run")] + recipe
    )
    segmenter = Segmenter.from_checkpoint(tmp_path / "run")
    assert segmenter.dataset.classes == ("ground", "box", "tree")
    assert segmenter(np.zeros((64, 128, 3), np.uint8)).classes.max() < 3
