"""`converters.verify`: passes what agrees, fails what does not, and says by how much."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from converters import recording as reading
from converters import torch_weights, verify
from converters.torch_files import torch_writer
from jaxseg.models.segmentation_model import build_model
from support.runs import ROOT
from support.tiny import tiny_config

HW = (64, 96)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording of the tiny model with filled weights, in the format of the reference."""
    config = tiny_config()
    variables = torch_weights.from_state_dict(verify.filled_state_dict(config), config)
    shape = (1, 3, *HW)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    images = np.moveaxis(images, 1, -1)
    arrays = {"input_shape": np.array(shape), "input_seed": np.array(0)}
    outputs = verify.run(build_model(config.model), variables, images)
    for name, value in outputs.items():
        value = np.asarray(value)
        index = np.arange(0, value.size, 7)
        arrays |= {f"{name}/shape": np.array(value.shape), f"{name}/index": index}
        arrays |= {f"{name}/values": value.ravel()[index], f"{name}/absmax": abs(value).max()}
    scores = np.sort(np.asarray(outputs["output"]), axis=1)
    arrays |= {
        "argmax/index": np.arange(scores[:, 0].size),
        "argmax/values": np.argmax(outputs["output"], axis=1).ravel().astype(np.uint8),
        "argmax/margin": (scores[:, -1] - scores[:, -2]).ravel(),
    }
    path = tmp_path_factory.mktemp("recording") / "tiny.npz"
    np.savez(path, **arrays)
    return path


def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


def changed(recording, path, **arrays):
    np.savez(path, **arrays_of(recording) | arrays)
    return path


def test_same_numbers_pass(recording, config_file, capsys):
    verify.main(["--config", config_file, "--reference", str(recording)])
    printed = capsys.readouterr().out
    assert "within the tolerance of 0.0001" in printed
    for name in ("backbone/0", "backbone/3", "logits", "output", "auxiliary", "class maps"):
        assert name in printed


def test_recording_in_the_form_of_vit_adapter_is_the_same(recording, tmp_path):
    """Other names, and the largest value as the third of the statistics."""
    arrays = {}
    for name, value in arrays_of(recording).items():
        tensor, _, field = name.rpartition("/")
        tensor, field = reading.NAMES.get(tensor, tensor), {"index": "idx"}.get(field, field)
        if field == "absmax":
            field, value = "stats", np.array([0.0, 1.0, value])
        arrays[f"{tensor}/{field}" if tensor else field] = value
    np.savez(tmp_path / "other.npz", **arrays)
    ours, other = reading.read_recording(recording), reading.read_recording(tmp_path / "other.npz")
    np.testing.assert_equal(dataclasses.asdict(other), dataclasses.asdict(ours))


def test_exit_status_is_1_beyond_the_tolerance(recording, config_file, tmp_path):
    arrays = arrays_of(recording)
    logits = arrays["logits/values"].copy()
    logits[5] += 2e-3 * arrays["logits/absmax"]
    other = changed(recording, tmp_path / "other.npz", **{"logits/values": logits})
    arguments = ["-m", "converters.verify", "--config", config_file, "--reference", str(other)]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "2.0e-03" in done.stdout
    assert "beyond the tolerance of 0.0001" in done.stderr


def test_one_wrong_class_is_not_tolerated(recording, config_file, tmp_path):
    arrays = arrays_of(recording)
    classes = arrays["argmax/values"].copy()
    clearest = np.argmax(arrays["argmax/margin"])
    classes[clearest] = (classes[clearest] + 1) % 19
    other = changed(recording, tmp_path / "other.npz", **{"argmax/values": classes})
    with pytest.raises(SystemExit, match="beyond the tolerance"):
        verify.main(["--config", config_file, "--reference", str(other)])


def test_other_weights_fail(recording, config_file, tmp_path):
    tensors = verify.filled_state_dict(tiny_config())
    torch_writer.write_torch_file(tmp_path / "same.pth", tensors)
    arguments = ["--config", config_file, "--reference", str(recording), "--checkpoint"]
    verify.main([*arguments, str(tmp_path / "same.pth")])
    tensors["decode_head.conv_seg.bias"] = tensors["decode_head.conv_seg.bias"] + 0.01
    torch_writer.write_torch_file(tmp_path / "other.pth", tensors)
    with pytest.raises(SystemExit, match="beyond the tolerance"):
        verify.main([*arguments, str(tmp_path / "other.pth")])


def test_file_that_is_no_recording_is_named(config_file, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "empty.npz", input_shape=np.array([1, 3, 64, 64]))
    for name, said in (("text.npz", "is no recording"), ("empty.npz", "no entry 'input_seed'")):
        with pytest.raises(SystemExit, match=said):
            verify.main(["--config", config_file, "--reference", str(tmp_path / name)])
