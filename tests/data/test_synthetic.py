"""The made-up street scenes: the layout and labels of Cityscapes, and writing them safely."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.samples import read_sample
from jaxseg.data.source import find_samples
from jaxseg.data.synthetic import scene
from jaxseg.data.synthetic.writer import STAMP, write_street_scenes
from jaxseg.errors import DataError

SMALL = {"train": 2, "val": 1, "image_hw": (32, 64)}


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*.png")}


def test_all_classes_occur_in_both_splits(tmp_path):
    write_street_scenes(tmp_path, train=12, val=6, image_hw=(128, 256))
    for split, count in (("train", 12), ("val", 6)):
        samples = find_samples("cityscapes", tmp_path, split)
        assert len(samples) == count
        pixels = np.zeros(256, int)
        for sample in samples:
            image, label = read_sample(sample)
            assert image.shape == (128, 256, 3)
            pixels += np.bincount(label.ravel(), minlength=256)
        rare = [
            name
            for name, share in zip(CITYSCAPES.classes, pixels[:19] / pixels.sum(), strict=True)
            if share < 1e-3
        ]
        assert not rare
        assert 0 < pixels[255] < 0.2 * pixels.sum()


def test_files_lie_as_in_cityscapes(tmp_path):
    write_street_scenes(tmp_path, train=5, val=1, image_hw=(32, 64))
    city = tmp_path / "leftImg8bit" / "train" / "lindenau"
    assert [file.name for file in sorted(city.iterdir())] == [
        "lindenau_000000_000019_leftImg8bit.png",
        "lindenau_000001_000019_leftImg8bit.png",
    ]
    raw = cv2.imread(str(next(tmp_path.glob("gtFine/val/*/*_labelIds.png"))), cv2.IMREAD_UNCHANGED)
    assert raw.shape == (32, 64)
    assert raw.max() < 34


def test_same_arguments_give_the_same_files_and_another_seed_gives_others(tmp_path):
    first = contents(write_street_scenes(tmp_path / "a", **SMALL, seed=1))
    again = contents(write_street_scenes(tmp_path / "b", **SMALL, seed=1))
    other = contents(write_street_scenes(tmp_path / "c", **SMALL, seed=2))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)
    assert len(set(first.values())) == len(first)


def test_more_scenes_do_not_change_the_earlier_ones(tmp_path):
    few = contents(write_street_scenes(tmp_path, **SMALL))
    more = contents(write_street_scenes(tmp_path, **(SMALL | {"train": 4})))
    assert few.items() <= more.items()
    assert len(more) == len(few) + 4


@pytest.mark.parametrize("hw", [(33, 70), (96, 64), (256, 512)])
def test_any_size_is_painted_whole(hw):
    image, label = scene.render(np.random.default_rng(0), hw, feature=0)
    assert image.shape == (*hw, 3)
    assert label.shape == hw
    assert image.dtype == label.dtype == np.uint8
    assert (label != 0).all()


def test_finished_set_is_left_alone(tmp_path):
    write_street_scenes(tmp_path, **SMALL)
    name, _ = next(iter(contents(tmp_path).items()))
    (tmp_path / name).write_bytes(b"touched")
    write_street_scenes(tmp_path, **SMALL)
    assert (tmp_path / name).read_bytes() == b"touched"


def test_interrupted_set_is_written_again(tmp_path, monkeypatch):
    expected = contents(write_street_scenes(tmp_path / "whole", **SMALL))

    painted, render = [], scene.render

    def interrupted(*arguments, **options):
        if painted:
            raise KeyboardInterrupt
        painted.append(True)
        return render(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scene, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_street_scenes(tmp_path / "part", **SMALL)
    assert not json.loads((tmp_path / "part" / STAMP).read_text())["finished"]
    assert contents(write_street_scenes(tmp_path / "part", **SMALL)) == expected


def test_set_of_other_parameters_is_replaced(tmp_path):
    write_street_scenes(tmp_path, **(SMALL | {"train": 4}))
    (tmp_path / STAMP).write_text("{")
    write_street_scenes(tmp_path, **SMALL)
    assert len(find_samples("cityscapes", tmp_path, "train")) == 2


def test_datasets_of_others_are_not_touched(tmp_path):
    image = tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_000000_000019_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"somebody's")
    with pytest.raises(DataError, match="not made here"):
        write_street_scenes(tmp_path, **SMALL)
    assert image.read_bytes() == b"somebody's"


def test_command_line_writes_a_set(tmp_path):
    command = [sys.executable, "-m", "jaxseg.data.synthetic", "--output", tmp_path / "scenes"]
    command += ["--train", "1", "--val", "1", "--height", "32", "--width", "64", "--seed", "3"]
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "1 training and 1 validation scenes" in output.stdout
    (sample,) = find_samples("cityscapes", tmp_path / "scenes", "val")
    assert read_sample(sample)[1].shape == (32, 64)
