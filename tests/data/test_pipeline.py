"""The batches: the same whoever makes them, resumable, and honest about bad files."""

import json
import os
import signal
import subprocess
import sys
import time
import types
import zlib

import numpy as np
import psutil
import pytest

from jaxseg.data import pipeline
from jaxseg.data.evaluation_images import evaluation_images
from jaxseg.data.samples import read_sample
from jaxseg.data.source import find_samples
from jaxseg.data.synthetic.writer import write_street_scenes
from jaxseg.errors import ConfigError, DataError
from support.batches import assert_same_batches, make_config, take
from support.runs import ROOT

TRAIN = 5  # samples


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    return write_street_scenes(root, train=TRAIN, val=1, image_hw=(32, 64))


@pytest.fixture
def damaged(root, tmp_path):
    """A copy of the samples, the second of which is cut short."""
    damaged = write_street_scenes(tmp_path, train=TRAIN, val=1, image_hw=(32, 64))
    second = find_samples("cityscapes", damaged, "train")[1]
    second.image.write_bytes(second.image.read_bytes()[:-500])
    return damaged


@pytest.fixture
def indices_as_images(root, monkeypatch):
    """Samples are read as pictures of their own number, and not augmented."""
    samples = find_samples("cityscapes", root, "train")

    def opened(sample):
        number = samples.index(sample)
        image = types.SimpleNamespace(first_rows=lambda n: np.full((n, 32, 3), number, np.uint8))
        return image, np.zeros((16, 32), np.uint8)

    def transformed(first_rows, label, *_):
        return first_rows(len(label)), label

    monkeypatch.setattr(pipeline, "open_sample", opened)
    monkeypatch.setattr(pipeline.transforms, "train_transform", transformed)


def numbers(batches):
    return [batch["image"][:, 0, 0, 0].tolist() for batch in batches]


def test_batch_holds_normalized_images_and_train_ids(root):
    batch = next(pipeline.training_batches(make_config(root), batch_size=4, seed=0))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((4, 16, 32, 3), np.float32),
        "label": ((4, 16, 32), np.int32),
        "replaced": ((4,), np.int32),
    }
    assert -2.2 < batch["image"].min() < 0 < batch["image"].max() < 2.8
    assert set(np.unique(batch["label"])) <= {*range(19), 255}
    assert (batch["replaced"] == 0).all()


def test_workers_do_not_change_the_batches(root):
    one = pipeline.training_batches(make_config(root), batch_size=3, seed=1)
    other = pipeline.training_batches(make_config(root, workers=2), batch_size=3, seed=1)
    assert_same_batches(take(one, 5), take(other, 5))
    other.close()


def test_processes_share_the_batches_of_one(root):
    config = make_config(root)
    whole = take(pipeline.training_batches(config, batch_size=4, seed=1), 4)
    for rows in ([0, 1], [2, 3], [0, 2]):
        part = take(pipeline.training_batches(config, batch_size=4, seed=1, rows=rows), 4)
        assert_same_batches([{k: v[rows] for k, v in batch.items()} for batch in whole], part)


@pytest.mark.usefixtures("indices_as_images")
def test_every_epoch_has_every_sample_once_in_another_order(root):
    batches = pipeline.training_batches(make_config(root), batch_size=1, seed=0)
    sequence = np.ravel(numbers(take(batches, 8 * TRAIN))).reshape(8, TRAIN)
    assert (np.sort(sequence, axis=1) == np.arange(TRAIN)).all()
    assert len(np.unique(sequence, axis=0)) > 4


@pytest.mark.usefixtures("indices_as_images")
@pytest.mark.parametrize("batch_size", [2, 12])
def test_a_small_set_goes_round(root, batch_size):
    batches = pipeline.training_batches(make_config(root), batch_size=batch_size, seed=0)
    sequence = np.concatenate(numbers(take(batches, 10)))
    assert np.bincount(sequence, minlength=TRAIN).min() >= 10 * batch_size // TRAIN


def test_a_single_sample_is_augmented_anew_every_time(tmp_path):
    root = write_street_scenes(tmp_path, train=1, val=0, image_hw=(32, 64))
    images = next(pipeline.training_batches(make_config(root), batch_size=4, seed=0))["image"]
    assert all(not np.array_equal(images[0], image) for image in images[1:])


def test_seed_decides(root):
    config = make_config(root)
    first, again, other = (
        take(pipeline.training_batches(config, batch_size=2, seed=seed), 2) for seed in (7, 7, 8)
    )
    assert_same_batches(first, again)
    assert not np.array_equal(first[0]["image"], other[0]["image"])


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0)])
def test_restored_batches_continue_in_the_middle_of_an_epoch(root, before, after):
    def make(workers):
        config = make_config(root, workers=workers)
        return pipeline.training_batches(config, batch_size=2, seed=3)

    first = make(before)
    take(first, 3)
    state = json.loads(json.dumps(first.get_state()))
    expected = take(first, 4)
    first.close()
    second = make(after)
    second.set_state(state)
    assert second.get_state() == state
    assert_same_batches(take(second, 4), expected)
    second.close()


def test_batches_can_be_set_back_with_others_read_ahead_already(root):
    batches = pipeline.training_batches(make_config(root), batch_size=2, seed=3)
    first = take(batches, 3)
    batches.set_state({"batches_taken": 1, "first_image": 0})
    assert_same_batches(take(batches, 2), first[1:])


def test_closed_batches_say_so(root):
    batches = pipeline.training_batches(make_config(root), batch_size=2, seed=3)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_file_stops_training_with_its_name(damaged, workers):
    config = make_config(damaged, workers=workers)
    batches = pipeline.training_batches(config, batch_size=TRAIN, seed=0)
    name = find_samples("cityscapes", damaged, "train")[1].image.name
    with pytest.raises(DataError, match=name) as error:
        take(batches, 2)
    assert "skip_corrupt" in str(error.value)
    batches.close()


def test_corrupt_file_gives_way_to_the_next_and_is_counted(damaged):
    config = make_config(damaged, skip_corrupt=True)
    batches = take(pipeline.training_batches(config, batch_size=TRAIN, seed=0), 3)
    again = take(pipeline.training_batches(config, batch_size=TRAIN, seed=0), 3)
    assert_same_batches(batches, again)
    assert [batch["replaced"].sum() for batch in batches] == [1, 1, 1]

    third = find_samples("cityscapes", damaged, "train")[2]
    third.image.write_bytes(b"")
    batch = next(pipeline.training_batches(config, batch_size=TRAIN, seed=0))
    assert sorted(batch["replaced"]) == [0, 0, 0, 1, 2]


def test_a_file_that_fails_when_its_crop_is_decoded_is_replaced_like_any_other(damaged):
    config = make_config(damaged, skip_corrupt=True)
    expected = next(pipeline.training_batches(config, batch_size=TRAIN, seed=0))
    first, second = find_samples("cityscapes", damaged, "train")[:2]
    content = bytearray(first.image.read_bytes())
    start, end = content.index(b"IDAT"), len(content) - 16
    content[start + 4 : end] = bytes(end - start - 4)
    content[end : end + 4] = zlib.crc32(content[start:end]).to_bytes(4)  # as if written like this
    second.image.write_bytes(content)
    batch = next(pipeline.training_batches(config, batch_size=TRAIN, seed=0))
    assert_same_batches([batch], [expected])


def test_set_of_corrupt_files_only_is_an_error(root, tmp_path):
    write_street_scenes(tmp_path, train=2, val=0, image_hw=(32, 64))
    for sample in find_samples("cityscapes", tmp_path, "train"):
        sample.label.write_bytes(b"")
    config = make_config(tmp_path, skip_corrupt=True)
    with pytest.raises(DataError, match=r"None of the 2 samples.*is empty"):
        next(pipeline.training_batches(config, batch_size=2, seed=0))


def test_wrong_labels_are_never_skipped(tmp_path):
    write_street_scenes(tmp_path, train=2, val=0, image_hw=(32, 64))
    first, second = find_samples("cityscapes", tmp_path, "train")
    second.image.write_bytes(b"")
    os.replace(first.label, second.label)
    first.label.write_bytes(first.image.read_bytes())
    config = make_config(tmp_path, skip_corrupt=True)
    with pytest.raises(DataError, match="is not a label"):
        next(pipeline.training_batches(config, batch_size=2, seed=0))


def test_missing_data_and_impossible_batches_are_refused_at_once(root, tmp_path):
    with pytest.raises(DataError, match="Expected"):
        pipeline.training_batches(make_config(tmp_path), batch_size=2, seed=0)
    for wrong in ({"batch_size": 0}, {"batch_size": 2, "rows": []}):
        with pytest.raises(ConfigError):
            pipeline.training_batches(make_config(root), seed=0, **wrong)


def test_images_are_evaluated_as_they_are_and_filled_in_where_a_process_has_none_left(root):
    samples = find_samples("cityscapes", root, "train")[:3]
    config = make_config(root)
    first, second = (
        list(evaluation_images(samples, config, process_index=i, process_count=2)) for i in range(2)
    )
    assert [item["index"] for item in first] == [0, 2]
    assert [item["index"] for item in second] == [1, -1]
    for item in (*first, second[0]):
        image, label = read_sample(samples[item["index"]])
        np.testing.assert_array_equal(item["image"], image, strict=True)
        np.testing.assert_array_equal(item["label"], label, strict=True)
    # Of the size that the other process has, and all ignored.
    assert second[1]["image"].shape == first[1]["image"].shape
    assert np.all(second[1]["label"] == 255)


TAKE_ONE_AND_WAIT = """
import multiprocessing, sys, time
sys.path.insert(0, {tests!r})
from support.batches import make_config
from jaxseg.data import pipeline, samples
if __name__ == "__main__":
    batches = pipeline.training_batches(make_config({root!r}, workers=2), batch_size=2, seed=0)
    next(batches), next(batches)  # one of each worker
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    {then}
"""


def run_script(tmp_path, root, then):
    script = tmp_path / "take_one.py"
    tests = str(ROOT / "tests")
    script.write_text(TAKE_ONE_AND_WAIT.format(tests=tests, root=str(root), then=then))
    return subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_program_that_just_ends_ends_quietly(root, tmp_path):
    with run_script(tmp_path, root, "pass") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""


def test_workers_ignore_sigterm_and_end_with_a_killed_parent(root, tmp_path):
    with run_script(tmp_path, root, "time.sleep(60)") as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.3)
        assert all(alive(pid) for pid in workers)
        process.kill()
        deadline = time.monotonic() + 10
        while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
