"""DINOv3's inference against its recordings: windows, views, resizing, scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from converters import torch_weights
from jaxseg.data import transforms, views
from jaxseg.distributed.sharding import make_mesh
from jaxseg.evaluation.metrics import compute_scores, confusion_matrix
from jaxseg.inference.predictor import make_predictor
from jaxseg.inference.sliding_window import SlidingWindow, slide_over
from jaxseg.models.segmentation_model import apply_model, build_model
from jaxseg.ops.image_resize import resize_image_smoothly
from jaxseg.ops.resize import resize_bilinear
from support import windowed
from support.recorded_dinov3 import adapter_of, head_of, transformer_of
from support.recorded_modules import VALUES, first
from support.reference_files import REFERENCE, Recording, relative_error
from support.tiny import tiny_config

pytestmark = pytest.mark.reference

MODULES = REFERENCE / "dinov3" / "modules"
# Sums of factors in bfloat16, whose mantissa has 8 bits; some factors round the other way.
BFLOAT16 = 2**-7


def segmentor(recording, **head):
    """A recorded segmentor and its variables, which come through the converter."""
    meta = recording.json("meta")
    adapter = meta["adapter"]
    if meta["decoder"] == "linear":
        backbone = transformer_of(adapter["backbone"]) | {"out_indices": meta["layers"]}
        backbone["kind"] = "dinov3"
        head = {"kind": "linear", "num_classes": meta["num_classes"], "in_index": (0,)}
    else:
        backbone = {"kind": "dinov3_adapter", **adapter_of(adapter)}
        head = {"kind": "mask2former", **head_of(meta["head"]), "full_size_masks": True, **head}
    model = {"dtype": "float32", "kernels": "auto", "backbone": backbone, "decode_head": head}
    config = ConfigDict({"variant": "recorded", "model": {**model, "auxiliary_head": None}})
    tensors = recording.group("params/") | recording.params()
    return build_model(config.model), torch_weights.from_state_dict(tensors, config)


@pytest.mark.parametrize("name", ["slide_inference_m2f_tiny", "slide_inference_linear_tiny"])
def test_windows_equal_the_reference(name):
    recording = Recording(MODULES / f"{name}.npz")
    # In the smallest windows, group norms over two values magnify what was rounded.
    tolerance = 5 * VALUES if "m2f" in name else VALUES
    model, variables = segmentor(recording)
    network = windowed.model_batcher(model, variables)
    for case, settings in recording.json("meta")["cases"].items():
        outputs = recording.group(f"{case}/outputs/")
        hw, out_hw = tuple(settings["hw"]), tuple(settings["to"])
        image = np.random.default_rng(settings["seed"]).standard_normal((1, 3, *hw))
        image = np.moveaxis(image.astype(np.float32)[0], 0, -1)
        slide = SlidingWindow((settings["crop"],) * 2, (settings["stride"],) * 2)
        slide = slide_over(hw, slide, squares=True)
        averaged = windowed.logits(windowed.view_of(network, image, hw, slide), network, hw)
        assert relative_error(first(averaged[None]), outputs["slide"]) < tolerance, case
        seen = [windowed.view_of(network, image, out_hw, slide)]
        seen.append(windowed.view_of(network, image[:, ::-1], out_hw, slide, mirrored=True))
        found = windowed.probabilities(seen[:1], network, out_hw)
        assert relative_error(first(found[None]), outputs["probs"]) < tolerance, case
        np.testing.assert_array_equal(np.argmax(found, axis=-1), outputs["argmax"][0])
        found = windowed.probabilities(seen, network, out_hw)
        assert relative_error(first(found[None]), outputs["flip_averaged_probs"]) < tolerance, case

    squeezed = resize_bilinear(jnp.asarray(image)[None], (512, 512))  # of the last case
    output, _ = apply_model(model, variables, squeezed)
    out_hw = (20, 30)
    whole = (
        output.masks.semantic(out_hw) if output.masks else resize_bilinear(output.logits, out_hw)
    )
    assert relative_error(first(whole), recording["whole/outputs/out"]) < VALUES


def inference_config(meta):
    config = tiny_config()
    config.data.test_scale_wh = (4 * meta["size"], meta["size"])
    config.data.mean, config.data.std = meta["mean"], meta["std"]
    config.eval.update(mode="slide", crop_hw=(meta["crop"],) * 2, stride_hw=(meta["stride"],) * 2)
    config.eval.protocol = "ms"
    config.eval.ms.update(ratios=tuple(meta["ratios"]), flip=True, resize="dinov3")
    return config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ten_views_equal_the_reference(dtype):
    recording = Recording(MODULES / "tta_inference_m2f_tiny.npz")
    meta = recording.json("meta")
    config, image = inference_config(meta), recording["inputs/image"][:, :, ::-1]
    planned = views.plan_views(image.shape[:2], config)
    plain = [view for view in planned if not view.mirrored]
    seen = [number for view in plain for number in [view] * view.weight]
    for number, view in enumerate(seen):
        resized = views.resize(image, view.sizes, view.smooth)
        np.testing.assert_array_equal(resized[:, :, ::-1], recording[f"views/{number}/uint8"])
    corner = transforms.normalize(
        views.resize(image, seen[0].sizes, True), meta["mean"], meta["std"]
    )
    corner = np.moveaxis(corner[:8, :8], -1, 0)
    assert relative_error(corner, recording["views/0/normalised_corner"]) < VALUES

    model, variables = segmentor(recording, score_dtype=dtype)
    mesh = make_mesh({"data": 1, "fsdp": 1}, [jax.devices()[0]])
    found = make_predictor(model, variables, config, mesh).probabilities(image)
    outputs = recording.group("outputs/" if dtype == "float32" else "outputs_bfloat16/")
    tolerance = VALUES if dtype == "float32" else BFLOAT16
    assert relative_error(first(found[None]), outputs["probs"]) < tolerance
    if dtype == "float32":
        np.testing.assert_array_equal(np.argmax(found, axis=-1), outputs["argmax"][0])
        label = recording["inputs/label"]
        label = np.where((label == 0) | (label == 255), 255, label - 1).astype(np.uint8)
        confusion = confusion_matrix(outputs["argmax"][0], label, meta["num_classes"])
        inside = confusion[:-1, :-1]
        areas = [np.diag(inside), None, inside.sum(axis=0), inside.sum(axis=1)]
        areas[1] = areas[2] + areas[3] - areas[0]
        np.testing.assert_array_equal(areas, outputs["intersect_union_pred_label"])
        scores = compute_scores(2 * confusion)
        expected = dict(zip(meta["metrics"], outputs["metrics"], strict=True))
        assert scores.miou == pytest.approx(expected["mIoU"], rel=1e-6)
        assert scores.aacc == pytest.approx(expected["aAcc"], rel=1e-6)
        assert scores.macc == pytest.approx(expected["acc"], rel=1e-6)
        assert scores.mdice == pytest.approx(expected["dice"], rel=1e-6)
        assert scores.mfscore == pytest.approx(expected["fscore"], rel=1e-6)


def test_images_get_their_shorter_side_by_pillow():
    recording = Recording(MODULES / "image_resize.npz")
    for case, settings in enumerate(recording.json("__index__")):
        image, label = (recording[f"{case}/inputs/{name}"] for name in ("image", "label"))
        hw = transforms.exact_short_side_hw(image.shape[:2], settings["short_side"])
        expected = recording[f"{case}/outputs/image"]
        np.testing.assert_array_equal(transforms.resize_smoothly(image, hw), expected)
        np.testing.assert_array_equal(resize_image_smoothly(image[None], hw)[0], expected)
        label = transforms.resize_label_box(label, hw, (slice(0, hw[0]), slice(0, hw[1])))
        label = transforms.resize_label_box(label, hw, (slice(0, hw[0]), slice(0, hw[1])))
        np.testing.assert_array_equal(label, recording[f"{case}/outputs/label"])
