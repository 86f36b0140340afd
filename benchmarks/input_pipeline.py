"""Measures training samples per second on one core, from files to normalized crops.

python benchmarks/input_pipeline.py [--scenes 8 --crops 64 --rounds 5]

The data are Cityscapes (PNG of 1024 x 2048 pixels) and ADE20K (JPEG of 512 x 683), cropped as in
their recipes. The images are street scenes that this program paints, with the blur of a lens and
the noise of a sensor. They lie in the folders of the real datasets.

jaxseg is compared with the plain order, which decodes and resizes the whole image and then crops
it. The plain order has two forms. One does the color steps and the normalization in float32, as
mmsegmentation does. The other uses those of jaxseg, which are tables. jaxseg also reads what
`jaxseg.data.pack --decoded` makes of the files. All must give the same pixels.

Everything runs in turns in one process on one core, with the files in memory. A time is the minimum
over the rounds for a crop with its random numbers, averaged over the crops. The result is JSON,
which is also written to benchmarks/results/input_pipeline.json.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import tempfile
import time
from collections import defaultdict
from unittest import mock

import cv2
import numpy as np
from PIL import Image

from configs import ade20k, cityscapes
from jaxseg.data import pack, samples, transforms
from jaxseg.data.datasets.description import IGNORE
from jaxseg.data.decoding import pictures
from jaxseg.data.source import trained_on
from jaxseg.data.synthetic import scene
from jaxseg.reporting.manifest import versions

RESULT = pathlib.Path(__file__).parent / "results" / "input_pipeline.json"
PLAIN = "plain order, colors in float32"
PLAIN_TABLES = "plain order, colors as in jaxseg"
JAXSEG = "jaxseg"
JAXSEG_PACKED = "jaxseg, packed decoded"
PACKAGES = ("opencv-python-headless", "pillow", "isal")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8, help="files of each dataset")
    parser.add_argument("--crops", type=int, default=64, help="samples, in turn from the files")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(0)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write, recipe in (
            ("cityscapes", write_cityscapes, cityscapes.get_config()),
            ("ade20k", write_ade20k, ade20k.get_config()),
        ):
            config = recipe.data
            config.root = os.path.join(folder, name)
            for index in range(options.scenes):
                write(pathlib.Path(config.root), index)
            result[name] = compare(config, options.crops, options.rounds)
    result |= {
        "device": f"one core of {processor()}",
        "date": datetime.date.today().isoformat(),
        **versions(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }
    text = json.dumps(result, indent=1)
    RESULT.write_text(text + "\n")
    print(text)


def compare(config, crops, rounds):
    """Measures the rates and stages of all contenders, which must agree pixel by pixel."""
    source = trained_on(config)
    files = source.samples()
    config.root += "_packed"
    pack.pack(source, pathlib.Path(config.root), decoded=True)
    packed = trained_on(config).samples()
    float32 = (distorted_in_float32, normalized_in_float32)
    tables = (transforms.photometric_distortion, transforms.normalize)
    contenders = {
        PLAIN: (files, functools.partial(plain, colors=float32)),
        PLAIN_TABLES: (files, functools.partial(plain, colors=tables)),
        JAXSEG: (files, lazy),
        JAXSEG_PACKED: (packed, lazy),
    }
    best = {name: [(float("inf"), {})] * crops for name in contenders}
    for _ in range(rounds):
        for index in range(crops):
            outputs = []
            for name, (of_contender, load) in contenders.items():
                stages = Stages()
                rng = np.random.default_rng(index)
                with stages.of_jaxseg():
                    started = time.perf_counter()
                    outputs.append(load(of_contender[index % len(files)], config, rng, stages))
                    seconds = time.perf_counter() - started
                best[name][index] = min(best[name][index], (seconds, stages.seconds), key=first)
            for output in outputs[1:]:
                for ours, theirs in zip(output, outputs[0], strict=True):
                    np.testing.assert_array_equal(ours, theirs, strict=True)
    rates = {name: crops / sum(map(first, times)) for name, times in best.items()}
    return {
        "files": len(files),
        "crops": crops,
        "image_megabytes": mean([sample.image.stat().st_size / 1e6 for sample in files]),
        "label_megabytes": mean([sample.label.stat().st_size / 1e6 for sample in files]),
        "samples_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "speedup": {name: round(rate / rates[PLAIN], 2) for name, rate in rates.items()},
        "milliseconds": {
            name: {
                stage: mean([1e3 * stages[stage] for _, stages in times]) for stage in times[0][1]
            }
            for name, times in best.items()
        },
    }


class Stages:
    """Measures the time of each stage; a stage inside another one counts only for itself."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self._inner = []

    @contextlib.contextmanager
    def __call__(self, stage):
        self._inner.append(0.0)
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.seconds[stage] += seconds - self._inner.pop()
        if self._inner:
            self._inner[-1] += seconds

    @contextlib.contextmanager
    def of_jaxseg(self):
        """Times functions of jaxseg as stages."""
        with contextlib.ExitStack() as stack:
            for owner, name, stage in (
                (pictures, "read_bytes", "read"),
                (pictures.OpenedImage, "__init__", "decode"),
                (pictures.OpenedImage, "first_rows", "decode"),
                (samples, "read_label", "label"),
                (transforms, "random_crop", "crop"),
                (transforms, "resize_box", "resize"),
                (transforms, "random_flip", "flip"),
                (transforms, "photometric_distortion", "color"),
                (transforms, "normalize", "normalize"),
            ):
                timed = self(stage)(getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
            yield


def lazy(sample, config, rng, stages):
    """Loads a training sample as jaxseg does."""
    image, label = samples.open_sample(sample)
    return transforms.train_transform(image.first_rows, label, config, rng)


def plain(sample, config, rng, stages, *, colors):
    """Decodes a sample, resizes it whole, crops, flips, distorts, normalizes and pads it.

    Args:
      colors: the functions for the distortion and the normalization.
    """
    distorted, normalized = colors
    with stages("read"):
        content, label_content = sample.image.read_bytes(), sample.label.read_bytes()
    with stages("decode"):
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    with stages("label"):
        label = np.array(Image.open(io.BytesIO(label_content)))
        label = cv2.LUT(label, sample.label_format.train_ids)
    with stages("resize"):
        scale_wh = transforms.random_scale(config.scale_wh, config.ratio_range, rng)
        height, width = transforms.resized_hw(label.shape, scale_wh)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    with stages("crop"):
        box = random_box(label.shape, config.crop_hw, rng)
        for _ in range(10):
            classes, counts = np.unique(label[box], return_counts=True)
            counts = counts[classes != IGNORE]
            if len(counts) > 1 and counts.max() / counts.sum() < config.cat_max_ratio:
                break
            box = random_box(label.shape, config.crop_hw, rng)
        image, label = image[box], label[box]
    with stages("flip"):
        if rng.random() < config.flip_probability:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    with stages("color"):
        image = distorted(image, rng)
    with stages("normalize"):
        image = normalized(image, config.mean, config.std)
    extra = [(0, side - have) for side, have in zip(config.crop_hw, label.shape, strict=True)]
    if extra != [(0, 0), (0, 0)]:
        image = np.pad(image, (*extra, (0, 0)))
        label = np.pad(label, extra, constant_values=IGNORE)
    return image, label


def random_box(hw, crop_hw, rng):
    top, left = (
        int(rng.integers(0, max(side - crop, 0) + 1))
        for side, crop in zip(hw, crop_hw, strict=True)
    )
    return slice(top, top + crop_hw[0]), slice(left, left + crop_hw[1])


def distorted_in_float32(image, rng):
    if rng.integers(2):
        image = scaled_levels(image, 1, rng.uniform(-32, 32))
    contrast_first = rng.integers(2)
    if contrast_first and rng.integers(2):
        image = scaled_levels(image, rng.uniform(0.5, 1.5), 0)
    if rng.integers(2):
        image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        image[..., 1] = scaled_levels(image[..., 1], rng.uniform(0.5, 1.5), 0)
        image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
    if rng.integers(2):
        image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        image[..., 0] = (image[..., 0].astype(int) + int(rng.integers(-18, 18))) % 180
        image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
    if not contrast_first and rng.integers(2):
        image = scaled_levels(image, rng.uniform(0.5, 1.5), 0)
    return image


def scaled_levels(image, alpha, beta):
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def normalized_in_float32(image, mean, std):
    image = image.astype(np.float32)
    mean = np.float64(np.float32(mean)).reshape(1, -1)
    factor = 1 / np.float64(np.float32(std)).reshape(1, -1)
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    cv2.subtract(image, mean, image)
    cv2.multiply(image, factor, image)
    return image


def write_cityscapes(root, index):
    """Writes an image and its label as Pillow writes PNG: with a filter chosen for every row."""
    image, label = photograph(index, (1024, 2048))
    for folder, ending, pixels in (
        ("leftImg8bit", "leftImg8bit", image),
        ("gtFine", "gtFine_labelIds", label),
    ):
        file = root / folder / "train/lindenau" / f"lindenau_{index:06}_000019_{ending}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def write_ade20k(root, index):
    image, label = photograph(index, (512, 683))
    for folder, suffix, pixels in (("images", "jpg", image), ("annotations", "png", label)):
        file = root / folder / "training" / f"ADE_train_{index + 1:08}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=90)


def photograph(index, hw):
    """Returns RGB and raw ids of a street scene, as seen through a lens and a sensor."""
    rng = np.random.default_rng(index)
    image, label = scene.render(rng, hw, feature=index % 3)
    noise = rng.normal(0, 3, image.shape).astype(np.float32)
    # A sensor has one color per pixel; the other two are interpolated from its neighbors.
    image = cv2.GaussianBlur(image, (0, 0), 1.5) + cv2.GaussianBlur(noise, (0, 0), 0.7)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), label


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(': ')[2]}, {platform.machine()}"
    return platform.machine()


def first(pair):
    return pair[0]


def mean(values):
    return round(sum(values) / len(values), 2)


if __name__ == "__main__":
    main()
