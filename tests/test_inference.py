"""Whole and sliding-window inference: class maps and probabilities of the recorded protocol."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference_files import REFERENCE, Recording
from tiny import tiny_config

from converters.fill import fill
from converters.rules import to_variables
from jaxseg import inference, parallel, train
from jaxseg.data import transforms
from jaxseg.errors import ConfigError
from jaxseg.models import segmentor

# What the single-scale protocols are made of.
STEPS = {"Resize", "ResizeToMultiple", "RandomFlip", "Normalize"}
# Recorded, and not here yet: several views of an image.
LATER = {"tp_ss_with_flip_flag", "tp_whole_augtest", "tp_city_whole_augtest"}
LATER |= {"tp_city_setr_ms_aug", "tp_m2f_whole_ms", "tp_upernet_setr_ms"}
LATER |= {"tp_m2f_aug_pad_after_norm", "tp_m2f_aug_pad_before_norm"}


def protocol_cases():
    recording = Recording(REFERENCE / "protocol" / "eval.npz")
    cases = {}
    for entry in recording.json("__index__"):
        # Where mmsegmentation 0.20 and 0.27 differ, the former: it does not cut padding off. The
        # recipes that come with the latter do not pad.
        fields = recording.group(entry["case"] + "/") | recording.group(entry["case"] + "@020/")
        if "crop" in fields:
            cases[entry["case"]] = types.SimpleNamespace(name=entry["case"], **fields)
    return recording.group("net/"), cases


NET, CASES = protocol_cases()


def protocol(mode, crop, stride):
    sides = {"crop_hw": [int(side) for side in crop], "stride_hw": [int(side) for side in stride]}
    return inference.protocol_of({"mode": str(mode), **sides})


def net(images):
    """The recorded stand-in for a model: one convolution with stride 4."""
    kernel = jnp.asarray(NET["W"]).transpose(2, 3, 1, 0)
    dimensions = ("NHWC", "HWIO", "NHWC")
    scores = lax.conv_general_dilated(
        images, kernel, (4, 4), ((1, 1), (1, 1)), dimension_numbers=dimensions
    )
    return scores + NET["b"]


@pytest.mark.reference
def test_the_cases_put_off_are_recorded_and_are_only_those_of_several_views():
    assert set(CASES) >= LATER
    for name, case in CASES.items():
        views = getattr(case, "aug_flips", ["one"])
        assert (len(views) > 1) == (name in LATER)
        if hasattr(case, "transforms") and name not in LATER:
            assert {step["type"] for step in json.loads(str(case.transforms))} <= STEPS


@pytest.mark.reference
@pytest.mark.parametrize("name", sorted(set(CASES) - LATER))
def test_class_map_is_the_recorded_one(name):
    case = CASES[name]
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
    scores = inference.scores(net, image[None], hw, protocol(case.mode, case.crop, case.stride))[0]
    unmirrored = scores[:, ::-1] if case.flip else scores
    np.testing.assert_array_equal(np.argmax(unmirrored, axis=-1), expected)
    probabilities = jax.nn.softmax(jnp.moveaxis(scores[::3, ::3], -1, 0), axis=0)
    if hasattr(case, "mean_prob_every3"):
        np.testing.assert_allclose(probabilities, case.mean_prob_every3, atol=1e-6)
    else:  # positions of the last resize are rounded otherwise in the original
        expected = jax.nn.softmax(case.EncoderDecoder_logits, axis=0)
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.reference
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
    predict = jax.jit(inference.predict, static_argnums=(0, 3, 4))
    checked = 0
    for name, case in hparams["cases"].items():
        image = np.moveaxis(recording.arrays.get(f"inputs/{name}", np.zeros(1)[None])[0], 0, -1)
        padded = list(image.shape[:2]) != case.get("img_shape", [])[:2]
        if "mode" not in case or case["flip"] or padded:  # not here yet
            continue
        checked += 1
        settings = case["test_cfg"]
        way = protocol(case["mode"], settings.get("crop_size", ()), settings.get("stride", ()))
        out = np.asarray(predict(model, variables, image, tuple(case["ori_shape"][:2]), way))
        expected = np.moveaxis(recording[f"outputs/{name}/probs"][0], 0, -1)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        margin = np.diff(np.sort(expected, axis=-1)[..., -2:], axis=-1)[..., 0]
        same = np.argmax(out, axis=-1) == recording[f"outputs/{name}/pred"][0]
        assert np.all(same | (margin < 1e-5))
    assert checked == 5


def slide_in_numpy(forward, image, crop_hw, stride_hw):
    """The reference's rule, window by window; returns mean scores and how often a pixel is seen."""
    (height, width), (crop_h, crop_w), (stride_h, stride_w) = image.shape[:2], crop_hw, stride_hw
    total, seen = 0 * forward(image[None])[0], np.zeros((height, width))
    for row in range(max(height - crop_h + stride_h - 1, 0) // stride_h + 1):
        for column in range(max(width - crop_w + stride_w - 1, 0) // stride_w + 1):
            bottom = min(row * stride_h + crop_h, height)
            right = min(column * stride_w + crop_w, width)
            window = np.s_[max(bottom - crop_h, 0) : bottom, max(right - crop_w, 0) : right]
            total[window] += forward(image[window][None])[0]
            seen[window] += 1
    return total / seen[..., None], seen


def differs_by_window(images):
    """Scores of a pixel that depend on the window it is in."""
    return images - images.mean(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("seed", range(12))
def test_windows_cover_every_pixel_and_are_averaged_as_in_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    crop = rng.integers(1, 30, 2)
    stride = [rng.integers(1, side + 1) for side in crop]
    images = rng.standard_normal((2, height, width, 3)).astype(np.float32)
    out = inference.slide_scores(differs_by_window, images, (height, width), crop, stride)
    assert out.shape == images.shape
    for image, result in zip(images, out, strict=True):
        expected, seen = slide_in_numpy(differs_by_window, image, crop, stride)
        assert seen.min() >= 1
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "crop", "stride", "starts"),
    [
        (1024, 896, 512, [0, 128]),  # Cityscapes, ViT-Adapter
        (2048, 896, 512, [0, 512, 1024, 1152]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),  # fits: none is moved
        (854, 512, 341, [0, 341, 342]),
        (512, 512, 341, [0]),
    ],
)
def test_window_starts(size, crop, stride, starts):
    assert inference.window_starts(size, crop, stride).tolist() == starts


@pytest.mark.parametrize("crop", [(40, 56), (40, 99), (64, 64)])
def test_one_window_around_everything_is_the_whole_image(crop):
    images = np.random.default_rng(0).standard_normal((2, 40, 56, 3)).astype(np.float32)
    slid = inference.slide_scores(net, images, (50, 70), crop, (32, 32))
    np.testing.assert_allclose(slid, inference.whole_scores(net, images, (50, 70)), atol=1e-6)


def test_windows_of_images_on_several_devices_stay_where_they_are():
    mesh = parallel.make_mesh({"data": -1, "fsdp": 1})
    images = jax.ShapeDtypeStruct(
        (2 * mesh.size, 48, 64, 3), np.float32, sharding=jax.NamedSharding(mesh, parallel.BATCH)
    )
    slide = jax.jit(inference.slide_scores, static_argnums=(0, 2, 3, 4))
    compiled = slide.lower(net, images, (48, 64), (32, 32), (20, 20)).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "permute("))
    assert compiled.output_shardings.spec[0] == parallel.AXES


def test_sliding_needs_no_more_memory_than_one_array_of_scores_and_a_few_windows():
    """Beyond its result; 150 classes of a Cityscapes image are 1.26 GB."""

    def many_classes(images):
        return images[:, ::4, ::4, :1] * jnp.arange(150, dtype=jnp.float32)

    def classes(images):
        crop, stride = (512, 512), (341, 341)
        scores = inference.slide_scores(many_classes, images, (1024, 2048), crop, stride)
        return jnp.argmax(scores, axis=-1)

    image = jax.ShapeDtypeStruct((1, 1024, 2048, 3), np.float32)
    memory = jax.jit(classes).lower(image).compile().memory_analysis()
    scores, window = 4 * 150 * 1024 * 2048, 4 * 150 * 512 * 512
    assert memory.temp_size_in_bytes < scores + 3 * window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "sliding"}, "eval.mode=sliding: 'whole' or 'slide'"),
        ({"crop_hw": (512,)}, r"eval.crop_hw=\(512,\): height and width"),
        ({"crop_hw": (512, 0)}, r"eval.crop_hw=\(512, 0\): height and width"),
        ({"stride_hw": (341, 341.5)}, r"eval.stride_hw=\(341, 341.5\): height and width"),
        ({"stride_hw": (341, 513)}, r"eval.stride_hw=\(341, 513\) leaves gaps .*\(512, 512\)"),
    ],
)
def test_windows_that_cannot_be_are_refused_before_training(changes, message):
    config = tiny_config()
    with config.ignore_type():
        config.eval.update({"mode": "slide", **changes})
    with pytest.raises(ConfigError, match=message):
        train.check(config, parallel.make_mesh({"data": -1, "fsdp": 1}))
