"""Views and windows of images: class maps and probabilities of the recorded protocol; how often
the network runs and is compiled, and what is held at once."""

import json
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, monitoring
from ml_collections import ConfigDict

from converters.fill import fill
from converters.rules import to_variables
from jaxseg.config import load_config
from jaxseg.data import views
from jaxseg.distributed.sharding import make_mesh
from jaxseg.inference import tiles
from jaxseg.inference.batcher import Batcher, compile_forward
from jaxseg.inference.predictor import Predictor, make_predictor
from jaxseg.inference.sliding_window import parse_sliding_window
from jaxseg.models.segmentation_model import build_model
from jaxseg.recipes import base
from support.reference_files import REFERENCE, Recording
from support.tiny import initial_state, tiny_config
from support.windowed import logits, make_batcher, model_batcher, probabilities, view_of


def protocol_cases():
    """By name: of prepared images, and from images as they are read."""
    recording = Recording(REFERENCE / "protocol" / "eval.npz")
    prepared, whole = {}, {}
    for entry in recording.json("__index__"):
        fields = recording.group(entry["case"] + "/")
        if "x_times_32" in fields:
            prepared[entry["case"]] = fields
        elif "transforms" in fields:
            whole[entry["case"]] = types.SimpleNamespace(**fields)
    return recording, prepared, whole


RECORDING, PREPARED, CASES = protocol_cases()
PADDED_VALUE = RECORDING["tp_m2f_aug_pad_before_norm_padvalue/value"]


def slide_in(mode, crop, stride):
    sides = {"crop_hw": [int(side) for side in crop], "stride_hw": [int(side) for side in stride]}
    return parse_sliding_window({"mode": str(mode), **sides})


def net(images):
    """The recorded stand-in for a model: one convolution with stride 4."""
    kernel = jnp.asarray(RECORDING["net/W"]).transpose(2, 3, 1, 0)
    dimensions = ("NHWC", "HWIO", "NHWC")
    logits = lax.conv_general_dilated(
        images, kernel, (4, 4), ((1, 1), (1, 1)), dimension_numbers=dimensions
    )
    return logits + RECORDING["net/b"]


@pytest.fixture(scope="module")
def batcher():
    return make_batcher(net)


@pytest.mark.reference
@pytest.mark.parametrize("name", PREPARED)
@pytest.mark.parametrize("cut_padding", [True, False], ids=["mmseg-0.27", "mmseg-0.20"])
def test_class_map_of_a_prepared_image_is_the_recorded_one(batcher, name, cut_padding):
    case = PREPARED[name]
    if not cut_padding:  # what is not recorded again is the same
        case = case | RECORDING.group(name + "@020/")
    pixels = np.moveaxis(case["x_times_32"], 0, -1).astype(np.float32) / 32
    hw, mirrored = tuple(case["ori_shape"].tolist()), bool(case["flip"])
    unpadded_hw = tuple(case["img_shape"].tolist()) if cut_padding else pixels.shape[:2]
    slide = slide_in(case["mode"], case["crop"], case["stride"])
    view = view_of(batcher, pixels, hw, slide, unpadded_hw, mirrored)
    found = probabilities([view], batcher, hw)
    expected = case["EncoderDecoder_prob_argmax"]
    np.testing.assert_array_equal(np.argmax(found, axis=-1), expected)

    # The logits are recorded before they are mirrored back.
    found = logits(view, batcher, hw)
    found = np.moveaxis(found[:, ::-1] if mirrored else found, -1, 0)[:, ::3, ::3]
    # Positions of the last resize are rounded otherwise in the original.
    np.testing.assert_allclose(found, case["EncoderDecoder_logits"], atol=2e-4)


@pytest.mark.reference
def test_both_ways_with_padding_are_recorded():
    for name in ("slide_padded", "whole_padded"):
        ways = [RECORDING[f"{name}{way}/EncoderDecoder_prob_argmax"] for way in ("", "@020")]
        assert np.any(ways[0] != ways[1])


def config_of(case):
    """The config with which a recorded case is evaluated."""
    names = [step["type"] for step in json.loads(str(case.transforms))]
    steps = {step["type"]: step for step in json.loads(str(case.transforms))}
    pad = "none"
    if "PadShortSide" in names:
        before = names.index("PadShortSide") < names.index("Normalize")
        pad = "before_normalize" if before else "after_normalize"
    rule = base.SINGLE_SCALE | {
        "ratios": tuple(case.img_ratios.tolist()) if any(case.img_ratios) else (1.0,),
        "flip": bool(case.flip),
        "resize": "short_side" if "SETR_Resize" in steps else "within",
        "pad": pad,
    }
    crop_hw, stride_hw = (tuple(sides.tolist()) for sides in (case.crop, case.stride))
    windows = {"mode": str(case.mode), "crop_hw": crop_hw, "stride_hw": stride_hw}
    data = {
        "test_scale_wh": tuple(case.img_scale.tolist()),
        "test_multiple": steps.get("ResizeToMultiple", {"size_divisor": 1})["size_divisor"],
        "mean": tuple(steps["Normalize"]["mean"]),
        "std": tuple(steps["Normalize"]["std"]),
    }
    return ConfigDict({"data": data, "eval": {"protocol": "ms", "ms": rule, **windows}})


@pytest.mark.reference
@pytest.mark.parametrize("name", CASES)
def test_class_map_of_an_image_is_the_recorded_one(batcher, name):
    case = CASES[name]
    predictor = Predictor(batcher, config_of(case))
    (classes,) = predictor.class_maps([case.img])
    np.testing.assert_array_equal(classes, case.pred, strict=True)
    found = np.moveaxis(predictor.probabilities(case.img), -1, 0)[:, ::3, ::3]
    np.testing.assert_allclose(found, case.mean_prob_every3, atol=1e-6)


@pytest.mark.reference
@pytest.mark.parametrize("name", CASES)
def test_views_are_the_recorded_ones(name):
    case, config = CASES[name], config_of(CASES[name])
    pixels = {}
    for view in views.plan_views(case.img.shape[:2], config):
        resized = views.resize(case.img, view.sizes)
        shown = views.cut_window(resized, view, 0, 0, view.padded_hw, config)
        key = view.padded_hw, view.hw, view.mirrored
        # Views of one size may still differ: resized to it by way of another one.
        pixels.setdefault(key, []).extend([shown] * view.weight)
    fields = case.aug_input_shapes, case.aug_img_shapes, case.aug_flips, case.aug_input_sums
    for padded_hw, hw, mirrored, total in zip(*fields, strict=True):
        alike = pixels[tuple(padded_hw), tuple(hw), bool(mirrored)]
        sums = [float(np.sum(shown, dtype=np.float64)) for shown in alike]
        closest = int(np.argmin(np.abs(np.subtract(sums, total))))
        assert sums[closest] == pytest.approx(float(total), abs=0.05)  # summed in float32
        del alike[closest]
    assert not any(pixels.values())


@pytest.mark.reference
def test_padding_is_black_before_and_the_mean_after_normalization():
    for name, value in (("before", PADDED_VALUE), ("after", np.zeros(3, np.float32))):
        case = CASES[f"tp_m2f_aug_pad_{name}_norm"]
        config = config_of(case)
        view = views.plan_views(case.img.shape[:2], config)[0]
        assert view.padded_hw > view.hw
        resized = views.resize(case.img, view.sizes)
        shown = views.cut_window(resized, view, 0, 0, view.padded_hw, config)
        np.testing.assert_array_equal(shown[-1, -1], value)


def test_views_that_show_the_same_are_shown_once():
    config = tiny_config(**{"data.test_scale_wh": (2048, 640), "eval.crop_hw": (640, 640)})
    config.eval.update({"protocol": "ms", "ms": {"resize": "short_side"}})
    found = views.plan_views((480, 640), config)
    assert [(view.hw, view.mirrored, view.weight) for view in found] == [
        (hw, mirrored, weight)
        for hw, weight in (((640, 853), 3), ((800, 1067), 1), ((960, 1280), 1), ((1120, 1493), 1))
        for mirrored in (False, True)
    ]


@pytest.mark.reference
def test_model_and_resizes_give_the_recorded_probabilities():
    recording = Recording(REFERENCE / "internimage" / "modules" / "test_modes.npz")
    hparams, shapes = recording.hparams, recording.json("param_shapes")
    depths = (1, 1, 2, 1)
    model = build_model(
        {
            "dtype": "float32",
            "backbone": {
                "kind": "internimage",
                "channels": hparams["channels"],
                "depths": depths,
                "groups": (1, 2, 4, 8),
                "layer_scale": 1.0,
            },
            "decode_head": {
                "kind": "upernet",
                "num_classes": hparams["num_classes"],
                "channels": hparams["head_channels"],
            },
            "auxiliary_head": None,
        }
    )
    variables = to_variables({name: fill(name, shape) for name, shape in shapes.items()})
    variables["params"].pop("auxiliary_head", None)
    variables["batch_stats"].pop("auxiliary_head", None)
    batcher = model_batcher(model, variables)

    def image(name):
        return np.moveaxis(recording[f"inputs/{name}"][0], 0, -1)

    for name, case in hparams["cases"].items():
        hw = tuple(case["ori_shape"][:2])
        if name == "aug":
            shown = [
                view_of(batcher, image(f"aug/{i}"), hw, mirrored=mirrored)
                for i, mirrored in enumerate(case["flips"])
            ]
        else:
            settings = case["test_cfg"]
            way = case["mode"], settings.get("crop_size", ()), settings.get("stride", ())
            unpadded_hw = tuple(case["img_shape"][:2])
            shown = [view_of(batcher, image(name), hw, slide_in(*way), unpadded_hw, case["flip"])]
        out = probabilities(shown, batcher, hw)
        expected = np.moveaxis(recording[f"outputs/{name}/probs"][0], 0, -1)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        margin = np.diff(np.sort(expected, axis=-1)[..., -2:], axis=-1)[..., 0]
        same = np.argmax(out, axis=-1) == recording[f"outputs/{name}/pred"].reshape(hw)
        assert np.all(same | (margin < 1e-5))


@pytest.fixture
def compilations():
    """The names of what JAX compiles."""
    found = []

    def listen(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(details.get("fun_name"))

    monitoring.register_event_duration_secs_listener(listen)
    yield found
    monitoring.unregister_event_duration_listener(listen)


class Counting(Batcher):
    """Keeps the shapes of the batches that it was run on, and whether their crops were padded."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.batches = []

    def _start(self, group):
        self.batches.append((self.batch_size, *group[0]))
        super()._start(group)


def every_fourth_pixel(images):
    return images[:, ::4, ::4]


def image_of(*hw):
    return np.random.default_rng(0).integers(0, 256, (*hw, 3)).astype(np.uint8)


def test_windows_and_scales_of_a_cityscapes_image_are_one_shape_in_full_batches(compilations):
    config = load_config("configs/cityscapes.py:mask2former_beit_adapter_l_mapillary")
    config.eval.protocol = "ms"
    traced = []

    def forward(images):
        traced.append(images.shape)
        return every_fourth_pixel(images)

    batcher = make_batcher(forward, devices=8, kind=Counting)
    predictor = Predictor(batcher, config)
    (classes,) = predictor.class_maps([image_of(1024, 2048)])
    assert classes.shape == (1024, 2048)
    # Six scales, for those below 1 are the first one twice; windows of 896 every 512.
    windows = 1 * 3 + 2 * 4 + 2 * 5 + 3 * 6 + 3 * 7 + 4 * 8
    assert batcher.batches == [(8, (896, 896), False)] * (2 * windows // 8)  # and mirrored
    assert traced == [(8, 896, 896, 3)]
    # The network for one shape; a view is added in one of three buckets, and the beginning and the
    # end of that are three more. Other tests may have compiled what is not the network.
    assert compilations.count("jit(<lambda>)") == 1
    assert compilations.count("jit(_add)") <= 3
    assert len(compilations) <= 1 + 3 + 3

    compilations.clear()
    list(predictor.class_maps([image_of(1000, 1504)]))
    assert not compilations


def test_images_in_one_piece_fill_a_batch_together():
    config = tiny_config(**{"data.test_multiple": 32})
    batcher = make_batcher(every_fourth_pixel, devices=4, crops_per_device=2, kind=Counting)
    sizes = [(64, 128)] * 8 + [(60, 120)] * 3 + [(64, 90)] * 5 + [(64, 128)] * 9
    maps = list(Predictor(batcher, config).class_maps(image_of(*hw) for hw in sizes))
    assert [classes.shape for classes in maps] == sizes
    # Nothing is padded but to the multiple that the recipe says, which makes the shapes few.
    assert batcher.batches.count((8, (64, 128), False)) == 3  # for 20 images
    assert batcher.batches.count((8, (64, 96), False)) == 1
    assert len(batcher.batches) == 4


def test_images_of_fifty_sizes_need_a_handful_of_programs(compilations):
    """Padding gives them a few shapes; what it adds, the model does not see."""
    config = tiny_config(**{"data.test_scale_wh": (256, 64)})
    model, variables = build_model(config.model), initial_state().variables()
    mesh = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    predictor = make_predictor(model, variables, config, mesh)
    sizes = [(60 + k, 110 - k) for k in range(50)]  # from 1:1.8 to 1.8:1
    assert predictor.warm_up(sizes) <= 5
    assert compilations.count("jit(run)") <= 5

    compilations.clear()
    images = [image_of(*hw) for hw in sizes]
    maps = list(predictor.class_maps(images))
    assert not compilations
    for classes, image in zip(maps, images, strict=True):
        np.testing.assert_array_equal(classes, predictor.probabilities(image).argmax(axis=-1))
    unpadded = Predictor(Batcher(compile_forward(model, None, mesh), variables, mesh, 1), config)
    found, expected = (p.probabilities(images[7]) for p in (predictor, unpadded))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_class_maps_are_the_most_probable_classes_of_every_tile():
    """Of an image of several tiles, in several batches: nothing is misplaced."""
    config = tiny_config(**{"data.test_scale_wh": (1100, 540), "eval.crop_hw": (128, 128)})
    config.eval.update({"mode": "slide", "stride_hw": (96, 96)})
    image = image_of(270, 550)
    batcher = make_batcher(every_fourth_pixel, devices=2)
    predictor = Predictor(batcher, config)
    found = predictor.probabilities(image)
    (classes,) = predictor.class_maps([image])
    np.testing.assert_array_equal(classes, np.argmax(found, axis=-1))

    view = views.plan_views((270, 550), config)[0]
    pixels = views.cut_window(views.resize(image, view.sizes), view, 0, 0, view.hw, config)
    slide = parse_sliding_window(config.eval)
    expected = jax.nn.softmax(
        logits(view_of(batcher, pixels, (270, 550), slide), batcher, (270, 550))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.full
def test_of_a_large_image_a_band_is_held(monkeypatch):
    """Neither are all logits on the devices at once, nor those of all windows on the host."""
    config = tiny_config(**{"data.test_scale_wh": (2048, 2048), "eval.crop_hw": (128, 128)})
    config.eval.update({"mode": "slide", "stride_hw": (64, 64), "protocol": "ms"})
    config.eval.ms.ratios = (1.0,)
    classes, side = 32, 2048
    batcher = make_batcher(lambda images: jnp.repeat(images[:, ::4, ::4, :1], classes, axis=-1))
    alive, pieces, on_devices = weakref.WeakSet(), [], []
    send, add = batcher.send, tiles._add

    def watched_send(pixels):
        piece = send(pixels)
        alive.add(piece)
        pieces.append(len(alive))
        on_devices.append(sum(array.nbytes for array in jax.live_arrays()))
        return piece

    def watched_add(*arguments):
        total = add(*arguments)
        on_devices.append(sum(array.nbytes for array in jax.live_arrays()))
        return total

    monkeypatch.setattr(batcher, "send", watched_send)
    monkeypatch.setattr(tiles, "_add", watched_add)
    before = sum(array.nbytes for array in jax.live_arrays())
    list(Predictor(batcher, config).class_maps([image_of(side, side)]))
    in_a_row = (side - 128) // 64 + 1
    assert len(pieces) == 2 * in_a_row**2
    # Of two views, the nine rows of windows that see a band of 256 rows or the next one.
    assert max(pieces) == 2 * 9 * in_a_row
    # Some tiles of 256 × 256, of which the image has 64.
    assert 1 < (max(on_devices) - before) / (4 * classes * tiles.TILE**2) < 4
