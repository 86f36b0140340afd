"""Whole-image inference: class maps and probabilities of the recorded protocol."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference_files import REFERENCE, Recording

from converters.fill import fill
from converters.rules import to_variables
from jaxseg import inference
from jaxseg.data import transforms
from jaxseg.models import segmentor

pytestmark = pytest.mark.reference

# What the single-scale protocols are made of.
STEPS = {"Resize", "ResizeToMultiple", "RandomFlip", "Normalize"}


def protocol_cases():
    recording = Recording(REFERENCE / "protocol" / "eval.npz")
    cases = []
    for entry in recording.json("__index__"):
        fields = recording.group(entry["case"] + "/")
        case = types.SimpleNamespace(name=entry["case"], **fields)
        whole = str(fields.get("mode")) == "whole" and not fields["flip"]
        if whole and "x_times_32" in fields:
            if tuple(case.img_shape) == case.x_times_32.shape[1:]:  # not padded
                cases.append(case)
        elif whole and {step["type"] for step in json.loads(str(case.transforms))} <= STEPS:
            cases.append(case)
    return recording.group("net/"), cases


NET, CASES = protocol_cases()


def net(images):
    """The recorded stand-in for a model: one convolution with stride 4."""
    kernel = jnp.asarray(NET["W"]).transpose(2, 3, 1, 0)
    dimensions = ("NHWC", "HWIO", "NHWC")
    scores = lax.conv_general_dilated(
        images, kernel, (4, 4), ((1, 1), (1, 1)), dimension_numbers=dimensions
    )
    return scores + NET["b"]


def test_the_recording_has_cases_of_whole_inference():
    assert {case.name for case in CASES} >= {"whole", "tp_city_whole_ss", "tp_whole_ss"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_class_map_is_the_recorded_one(case):
    if hasattr(case, "x_times_32"):
        image = np.moveaxis(case.x_times_32, 0, -1).astype(np.float32) / 32
        hw, expected = tuple(case.ori_shape), case.EncoderDecoder_prob_argmax
    else:
        steps = {step["type"]: step for step in json.loads(str(case.transforms))}
        config = types.SimpleNamespace(
            test_scale_wh=tuple(case.img_scale),
            test_multiple=steps.get("ResizeToMultiple", {"size_divisor": 1})["size_divisor"],
            mean=steps["Normalize"]["mean"],
            std=steps["Normalize"]["std"],
        )
        image = transforms.test_transform(case.img, config)
        hw, expected = case.img.shape[:2], case.pred
    scores = np.asarray(inference.whole_scores(net, image[None], hw))[0]
    np.testing.assert_array_equal(np.argmax(scores, axis=-1), expected)
    if hasattr(case, "mean_prob_every3"):
        probabilities = np.moveaxis(jax.nn.softmax(scores, axis=-1)[::3, ::3], -1, 0)
        np.testing.assert_allclose(probabilities, case.mean_prob_every3, atol=1e-6)


def test_model_and_resizes_give_the_recorded_probabilities():
    recording = Recording(REFERENCE / "internimage" / "modules" / "test_modes.npz")
    hparams, shapes = recording.hparams, recording.json("param_shapes")
    depths = (1, 1, 2, 1)
    model = segmentor.build(
        {
            "dtype": "float32",
            "backbone": {
                "kind": "intern_image",
                "channels": hparams["channels"],
                "depths": depths,
                "groups": (1, 2, 4, 8),
                "layer_scale": 1.0,
            },
            "decode_head": {
                "kind": "uper",
                "num_classes": hparams["num_classes"],
                "channels": hparams["head_channels"],
            },
            "auxiliary_head": None,
        }
    )
    variables = to_variables({name: fill(name, shape) for name, shape in shapes.items()})
    variables["params"].pop("auxiliary_head", None)
    variables["batch_stats"].pop("auxiliary_head", None)
    predict = jax.jit(inference.predict, static_argnums=(0, 3))
    checked = 0
    for name, case in hparams["cases"].items():
        image = np.moveaxis(recording.arrays.get(f"inputs/{name}", np.zeros(1)[None])[0], 0, -1)
        padded = list(image.shape[:2]) != case.get("img_shape", [])[:2]
        if case.get("mode") != "whole" or case["flip"] or padded:
            continue
        checked += 1
        out = np.asarray(predict(model, variables, image, tuple(case["ori_shape"][:2])))
        expected = np.moveaxis(recording[f"outputs/{name}/probs"][0], 0, -1)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        margin = np.diff(np.sort(expected, axis=-1)[..., -2:], axis=-1)[..., 0]
        same = np.argmax(out, axis=-1) == recording[f"outputs/{name}/pred"][0]
        assert np.all(same | (margin < 1e-5))
    assert checked == 3
