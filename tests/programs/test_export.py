"""Exported files run without jaxseg and give its results."""

import json
import os
import pathlib
import re
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from jax import export as jax_export

from jaxseg import export
from jaxseg.checkpoints.weights import save_weights
from jaxseg.data.source import evaluated_on
from jaxseg.errors import ConfigError
from jaxseg.models.segmentation_model import build_model
from jaxseg.segmenter import Segmenter
from jaxseg.selftest import models as small
from support.runs import ROOT
from support.tiny import tiny_config

pytestmark = pytest.mark.long

HW = (50, 90)
UPERNET = {"kind": "upernet", "num_classes": 19, "channels": 16}
SEGFORMER = {"kind": "segformer", "num_classes": 19, "channels": 16}
MASK2FORMER = small.MASK2FORMER | {"num_classes": 19}
INTERNIMAGE = tiny_config().model.backbone.to_dict()
TWO_STAGES = small.MODELS["InternImage, SegFormerHead"][0]  # compiles in seconds
DINOV3 = {"kind": "dinov3", "embed_dim": 32, "depth": 2, "num_heads": 2, "out_indices": (1,)}
LINEAR = {"kind": "linear", "num_classes": 19, "in_index": (0,)}
VIT_ADAPTER = small.MODELS["ViT-Adapter, SegFormerHead"][0]
BEIT_ADAPTER = small.MODELS["BEiT-Adapter, Mask2Former"][0]
PAIRS = {
    f"{backbone['kind']}, {head['kind']}": (backbone, head)
    for backbone in (INTERNIMAGE, VIT_ADAPTER, BEIT_ADAPTER)
    for head in (UPERNET, SEGFORMER, MASK2FORMER)
} | {"dinov3, linear": (DINOV3, LINEAR)}


def segmenter_of(backbone, head, **changes):
    """A segmenter with random weights whose classes depend on the pixels."""
    config = tiny_config(**{"data.test_scale_wh": (128, 64), "data.test_multiple": 32} | changes)
    config.model.backbone, config.model.decode_head = backbone, head
    config.model.auxiliary_head = None
    model = build_model(config.model)
    return Segmenter(config, evaluated_on(config.data).dataset, model, small.filled(model))


def photo(hw, seed=0):
    return np.roll(export.test_image(hw), 17 * seed, axis=(0, 1))


SLIDE = {"eval.mode": "slide", "eval.crop_hw": (64, 64), "eval.stride_hw": (43, 43)}
PROTOCOLS = {
    "whole": {},
    "windows, two scales and mirror images": {
        **SLIDE,
        "eval.protocol": "ms",
        "eval.ms.ratios": (1.0, 1.5),
    },
    "as DINOv3": {
        **SLIDE,
        "eval.protocol": "ms",
        "eval.ms.ratios": (0.9, 1.1),
        "eval.ms.resize": "dinov3",
    },
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_traced_prediction_is_that_of_the_segmenter(protocol):
    pair = (DINOV3, LINEAR) if protocol == "as DINOv3" else (TWO_STAGES, SEGFORMER)
    segmenter = segmenter_of(*pair, **PROTOCOLS[protocol])
    images = np.stack([photo(HW, k) for k in range(2)])
    classes, probabilities = jax.jit(segmenter.portable(HW))(images)
    for k, image in enumerate(images):
        expected = segmenter.probabilities(image)
        assert len(np.unique(expected.argmax(-1))) > 3
        np.testing.assert_array_equal(classes[k], segmenter(image).classes)
        np.testing.assert_allclose(probabilities[k], expected, atol=1e-6)


def examples():
    """The examples of the page, by the file that they load."""
    page = (ROOT / "docs/guides/export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return {re.search(r"model\.(\w+)", block)[1]: block for block in blocks}


def run_example(kind, folder, image):
    """What the example of the page prints and writes, in a process without jaxseg."""
    cv2.imwrite(str(folder / "photo.png"), image[..., ::-1])
    blocked = "import sys; sys.modules['jaxseg'] = None\n"
    (folder / "example.py").write_text(blocked + examples()[kind])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "example.py"], cwd=folder, env=environment, check=True)
    return cv2.imread(str(folder / "classes.png"), cv2.IMREAD_UNCHANGED)


@pytest.mark.usefixtures("unchecked_types")  # jaxtyping knows no symbolic sizes
def test_stablehlo_runs_with_jax_alone(tmp_path):
    segmenter = segmenter_of(TWO_STAGES, SEGFORMER)
    save_weights(tmp_path / "run", segmenter._variables, segmenter.config.to_dict())
    file = tmp_path / "model.stablehlo"
    program = ["--model", str(tmp_path / "run"), "--size", "50x90", "--batch", "symbolic"]
    export.main([*program, "--out", str(file)])
    found = run_example("stablehlo", tmp_path, photo(HW))
    np.testing.assert_array_equal(found, segmenter(photo(HW)).classes)
    exported = jax_export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    assert calls == {"shape_assertion"}  # of the symbolic batch: JAX checks it, and removes it
    images = np.stack([photo(HW, k) for k in range(3)])
    (classes,) = exported.call(images)
    np.testing.assert_array_equal(classes[2], segmenter(images[2]).classes)
    facts = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert facts["classes"] == list(segmenter.dataset.classes)
    assert facts["input"] == {"images": ["uint8", None, 50, 90, 3]}


def check_onnx(segmenter, folder, hw, batch):
    import onnxruntime

    file = folder / "model.onnx"
    assert export.export(segmenter, file, hw, batch, probabilities=True) > 0.999
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = np.stack([photo(hw, k) for k in range(batch or 3)])
    classes, probabilities = session.run(None, {"images": images})
    for k, image in enumerate(images):
        assert np.mean(classes[k] == segmenter(image).classes) >= 0.999
        np.testing.assert_allclose(probabilities[k], segmenter.probabilities(image), atol=1e-4)


@pytest.mark.full
def test_onnx_runs_with_onnxruntime_alone(tmp_path):
    segmenter = segmenter_of(TWO_STAGES, SEGFORMER)
    check_onnx(segmenter, tmp_path, HW, 1)
    found = run_example("onnx", tmp_path, photo(HW))
    assert np.mean(found == segmenter(photo(HW)).classes) >= 0.999


@pytest.mark.full
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("backbone", "head"), PAIRS.values(), ids=PAIRS)
def test_every_model_is_exported(tmp_path, backbone, head):
    segmenter = segmenter_of(backbone, head)
    check_onnx(segmenter, tmp_path, HW, 1)
    for batch in (1, None):
        assert export.export(segmenter, tmp_path / "model.stablehlo", HW, batch) == 1


@pytest.mark.full
@pytest.mark.parametrize("variant", ["upernet_internimage_t", "upernet_deit_adapter_t"])
def test_models_of_published_size_are_exported(tmp_path, variant):
    from jaxseg.config import load_config

    config = load_config(f"configs/ade20k.py:{variant}")
    model = build_model(config.model)
    dataset = evaluated_on(config.data).dataset
    segmenter = Segmenter(config, dataset, model, small.filled(model))
    assert export.export(segmenter, tmp_path / "model.stablehlo", (512, 683)) == 1
    check_onnx(segmenter, tmp_path, (512, 683), 1)


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    segmenter = segmenter_of(TWO_STAGES, SEGFORMER)
    with pytest.raises(ConfigError, match=r"ends with \.stablehlo or \.onnx"):
        export.export(segmenter, tmp_path / "model.pb", HW)
    for arguments in (["--size", "50"], ["--size", "0x9"], ["--size", "8x8", "--batch", "no"]):
        with pytest.raises(SystemExit):
            export.main(["--model", "m", "--out", str(tmp_path / "m.onnx"), *arguments])
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
    assert not list(pathlib.Path(tmp_path).iterdir())
