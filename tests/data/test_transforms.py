"""The transforms against the recorded ones of the reference, draw by draw and pixel by pixel."""

import json
import types
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from jaxseg.data import transforms
from jaxseg.data.datasets import get_dataset
from jaxseg.data.datasets.description import UNKNOWN
from support.reference_files import Recording, recordings

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# Recorded for datasets and models that are still to come.
LATER = {
    "setr_resize",
    "pad_short_side",
    "flip_vertical",
    "to_mask",
}


def recorded_cases():
    cases = []
    for file in recordings("protocol"):
        if file.stem.startswith("transforms"):
            recording = Recording(file)
            for entry in recording.json("__index__"):
                fields = recording.group(entry["case"] + "/")
                case = types.SimpleNamespace(name=entry["case"], **fields)
                cases.append(case)
    return cases


class Replay:
    """Stands in for a Generator: gives the recorded values in order and checks what is asked."""

    def __init__(self, draws):
        self.draws = json.loads(str(draws))

    def _next(self, functions, *arguments):
        function, recorded_arguments, value = self.draws.pop(0)
        assert function in functions
        assert recorded_arguments == list(arguments)
        return value

    def random(self):
        return self._next(("random_sample", "rand"))

    def uniform(self, low, high):
        return self._next(("uniform",), low, high)

    def integers(self, *bounds):
        return int(self._next(("randint",), *bounds))


class Record:
    """A real Generator that keeps what it drew."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.values = []

    def _keep(self, value):
        self.values.append(value)
        return value

    def random(self):
        return self._keep(self.rng.random())

    def uniform(self, low, high):
        return self._keep(self.rng.uniform(low, high))

    def integers(self, *bounds):
        return self._keep(int(self.rng.integers(*bounds)))


def rows_of(image):
    """Gives the rows of an image from its top that a transform asks for, and no more."""
    return lambda count: image[:count]


def kind_of(case):
    """The longest known beginning of a case's name; None for one that nothing here interprets."""
    kinds = [kind for kind in (*CHECKS, *LATER) if case.name.startswith(kind)]
    return max(kinds, key=len, default=None)


def check_resize_rule(case):
    for h, w, base0, base1, scale0, scale1, new_h, new_w, ratio in case.table:
        assert transforms.scaled((base0, base1), ratio) == (scale0, scale1)
        assert transforms.resized_hw((h, w), (scale0, scale1)) == (new_h, new_w)


def check_img_ratio_rule(case):
    for scale, row in zip(case.scales, case.out, strict=True):
        for ratio, expected in zip(case.ratios, row, strict=True):
            assert transforms.scaled(scale, ratio) == tuple(expected)


def check_resize_px(case):
    np.testing.assert_array_equal(transforms.resize(case.img, case.scale), case.out_img)
    hw = transforms.resized_hw(case.label.shape, case.scale)
    label = transforms.resize_label_box(case.label, hw, (slice(None), slice(None)))
    np.testing.assert_array_equal(label, case.out_label)


def check_resize_to_multiple_rule(case):
    for h, w, new_h, new_w in case.table:
        assert transforms.multiple_hw((h, w), 32) == (new_h, new_w)


def check_resize_to_multiple_px(case):
    np.testing.assert_array_equal(transforms.resize_to_multiple(case.img, 32), case.out_img)


def check_reduce_zero_label(case):
    label = get_dataset("ade20k").label_formats[0].train_ids[case.label]
    exists = label != UNKNOWN  # the recorded picture goes beyond 150
    np.testing.assert_array_equal(label[exists], case.out[exists])
    assert np.unique(case.label[exists]).max() == 255


def check_mapillary_hack(case):
    table = get_dataset("mapillary_to_cityscapes").label_formats[0].train_ids
    np.testing.assert_array_equal(table, case.out.ravel(), strict=True)


def check_crop(case):
    top, bottom, left, right = case.boxes[0]
    rng = Replay(case.draws)
    crop_hw = (bottom - top, right - left)
    box, label = transforms.random_crop(case.label, case.label.shape, crop_hw, 0.75, rng)
    assert not rng.draws
    np.testing.assert_array_equal(case.img[box], case.out_img)
    np.testing.assert_array_equal(label, case.out_label)


def check_flip_horizontal(case):
    rng = types.SimpleNamespace(random=lambda: 0.49)
    image, label = transforms.random_flip(case.img, case.label, 0.5, rng)
    np.testing.assert_array_equal(image, case.out_img)
    np.testing.assert_array_equal(label, case.out_label)


def check_pmd_brightness(case):
    for beta, out in zip(case.beta, case.out, strict=True):
        np.testing.assert_array_equal(transforms.brightness(case.img, float(beta)), out)


def check_pmd_contrast(case):
    for alpha, out in zip(case.alpha, case.out, strict=True):
        np.testing.assert_array_equal(transforms.contrast(case.img, float(alpha)), out)


# Levels by which a picture may differ after so many trips to HSV and back. OpenCV rounds or
# truncates the way back by blocks of pixels whose width depends on the CPU, which makes 1; the
# contrast after it stretches that, and a second trip with truncation in the place of rounding was
# seen to make 4. On the kind of CPU of the recordings (x86-64 with AVX2) all are equal bit by bit.
HSV_LEVELS = {0: 0, 1: 2, 2: 6}


def count_hsv_trips():
    return mock.patch.object(transforms, "_change_hsv", wraps=transforms._change_hsv)


def assert_levels_close(actual, expected, levels):
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(np.float64) - expected).max() <= levels


def check_pmd_hsv(case):
    assert_levels_close(transforms.hue(case.img, 0), case.back, 1)


def check_pmd_saturation(case):
    for alpha, out in zip(case.alpha, case.out, strict=True):
        assert_levels_close(transforms.saturation(case.img, float(alpha)), out, 1)


def check_pmd_hue(case):
    for delta, out in zip(case.delta, case.out, strict=True):
        assert_levels_close(transforms.hue(case.img, int(delta)), out, 1)


def check_pmd_full(case):
    rng = Replay(case.draws)
    with count_hsv_trips() as trips:
        out = transforms.photometric_distortion(case.img, rng)
    assert not rng.draws
    assert_levels_close(out, case.out, HSV_LEVELS[trips.call_count])


def check_normalize(case):
    out = transforms.normalize(case.img, case.mean, case.std)
    np.testing.assert_array_equal(out, case.out, strict=True)


def check_normalize_lut(case):
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    out = transforms.normalize(levels, IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_array_equal(out[0], case.lut, strict=True)


def check_pad(case):
    hw = case.out_label.shape
    np.testing.assert_array_equal(transforms.pad(case.img, hw, 0), case.out_img, strict=True)
    np.testing.assert_array_equal(transforms.pad(case.label, hw, 255), case.out_label, strict=True)


def check_pipeline(case):
    config = types.SimpleNamespace(
        scale_wh=case.img_scale,
        ratio_range=case.ratio_range,
        crop_hw=case.crop,
        cat_max_ratio=0.75,
        augmentation="mmseg",
        class_crop_probability=0.0,
        flip_probability=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    rng = Replay(case.draws)
    with count_hsv_trips() as trips:
        image, label = transforms.train_transform(rows_of(case.img), case.label, config, rng)
    assert not rng.draws
    np.testing.assert_array_equal(label, case.out_label, strict=True)
    if trips.call_count:
        levels = HSV_LEVELS[trips.call_count]
        assert_levels_close(image * IMAGENET_STD, case.out_img * IMAGENET_STD, levels + 1e-4)
    else:
        np.testing.assert_array_equal(image, case.out_img, strict=True)


def check_stats(case, draws=2000):
    """Our draws and the recorded ones (2000 each) come from the same distributions."""
    widest = np.sqrt(2 / draws) * 4.5  # 4.5 standard deviations of a difference of two means

    rng = np.random.default_rng(0)
    shorts = [min(transforms.random_scale((2048, 512), (0.5, 2), rng)) for _ in range(draws)]
    deciles = np.quantile(shorts, np.linspace(0, 1, 11))
    np.testing.assert_allclose(deciles, case.scale_short_quantiles, atol=widest / 2 * 768)
    sizes = np.array([transforms.resized_hw((512, 683), (4 * s, s)) for s in shorts])
    for side, recorded in zip(sizes.T, (case.new_h_quantiles, case.new_w_quantiles), strict=True):
        deciles = np.quantile(side, np.linspace(0, 1, 11))
        np.testing.assert_allclose(deciles, recorded, atol=widest / 2 * np.ptp(recorded))

    pixel = np.zeros((1, 2), np.uint8)
    pixel[0, 1] = 1
    flips = [transforms.random_flip(pixel, pixel, 0.5, rng)[0][0, 0] for _ in range(draws)]
    assert abs(np.mean(flips) - case.flip_rate) < widest / 2

    boxes = []
    for _ in range(draws):
        record = Record(rng.integers(2**32))
        label = case.crop_label
        transforms.random_crop(label, label.shape, (64, 64), 0.75, record)
        boxes.append((len(record.values) // 2, *record.values[-2:]))
    tries, tops, lefts = np.transpose(boxes)
    height, width = case.crop_label.shape
    assert_same_histogram(np.bincount(tries, minlength=12), case.crop_tries_hist)
    assert_same_histogram(np.histogram(tops, 10, (0, height - 63))[0], case.crop_y_hist)
    assert_same_histogram(np.histogram(lefts, 10, (0, width - 63))[0], case.crop_x_hist)

    gates, parameters = distortion_draws(draws, rng)
    np.testing.assert_allclose(gates.mean(axis=0), case.pmd_rates, atol=widest / 2)
    # The recorded order of the 32 patterns does not matter: all are equally likely.
    patterns = np.bincount(gates @ [1, 2, 4, 8, 16], minlength=32)
    for counts in (patterns, case.pmd_flag_pattern_counts):
        assert stats.chisquare(counts).pvalue > 1e-4
    spread = case.pmd_param_std
    mean, std = np.nanmean(parameters, axis=0), np.nanstd(parameters, axis=0)
    # About half of the draws have the parameter.
    assert (np.abs(mean - case.pmd_param_mean) < widest * np.sqrt(2) * spread).all()
    assert (np.abs(std - spread) < widest * np.sqrt(2) * spread).all()
    limits = np.array([[-32, 32], [0.5, 1.5], [0.5, 1.5], [-18, 17]])
    assert (np.nanmin(parameters, axis=0) >= limits[:, 0]).all()
    assert (np.nanmax(parameters, axis=0) <= limits[:, 1]).all()
    assert (case.pmd_param_min >= limits[:, 0]).all()
    assert (case.pmd_param_max <= limits[:, 1]).all()


def distortion_draws(draws, rng):
    """Gates [draws, 5] (brightness, contrast first, contrast, saturation, hue) and parameters
    [draws, 4] (nan where not drawn)."""
    names = ("brightness", "contrast", "saturation", "hue")
    gates, parameters = np.zeros((draws, 5), int), np.full((draws, 4), np.nan)
    image = np.zeros((1, 1, 3), np.uint8)
    spies = {name: mock.Mock(return_value=image) for name in names}
    with mock.patch.multiple(transforms, **spies):
        for gate, parameter in zip(gates, parameters, strict=True):
            record = Record(rng.integers(2**32))
            transforms.photometric_distortion(image, record)
            for index, spy in enumerate(spies.values()):
                if spy.called:
                    parameter[index] = spy.call_args.args[1]
                spy.reset_mock()
            gate[[0, 2, 3, 4]] = ~np.isnan(parameter)
            gate[1] = record.values[1 + gate[0]]
    return gates, parameters


def assert_same_histogram(ours, recorded):
    """Two-sample chi-square over the bins that hold something."""
    table = np.array([ours, recorded])
    table = table[:, table.sum(axis=0) > 0]
    assert stats.chi2_contingency(table).pvalue > 1e-4


CHECKS = {
    name.removeprefix("check_"): function
    for name, function in globals().items()
    if name.startswith("check_")
}


@pytest.mark.reference
@pytest.mark.parametrize(
    "case", [c for c in recorded_cases() if kind_of(c) in CHECKS], ids=lambda case: case.name
)
def test_recorded_case(case):
    CHECKS[kind_of(case)](case)


@pytest.mark.reference
def test_every_recorded_case_is_tested_here_or_known_to_belong_elsewhere():
    assert not [case.name for case in recorded_cases() if kind_of(case) is None]


def test_an_image_of_the_test_size_is_only_normalized():
    config = types.SimpleNamespace(
        test_scale_wh=(16, 8), test_multiple=1, mean=(1, 2, 3), std=(2, 2, 2)
    )
    image = np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8)
    out = transforms.test_transform(image, config)
    np.testing.assert_array_equal(out, (image[..., ::-1] - np.float32([1, 2, 3])) / 2)
    assert out.dtype == np.float32


def test_transforms_leave_their_input_alone():
    config = types.SimpleNamespace(
        scale_wh=(64, 32),
        ratio_range=(1, 1),
        crop_hw=(32, 64),
        cat_max_ratio=0.75,
        augmentation="mmseg",
        class_crop_probability=0.0,
        flip_probability=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 64, 3)).astype(np.uint8)
    label = rng.integers(0, 19, (32, 64)).astype(np.uint8)
    image.flags.writeable = label.flags.writeable = False
    for _ in range(8):
        transforms.train_transform(rows_of(image), label, config, rng)
