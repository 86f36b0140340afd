"""Packed datasets are what they were packed from, whole or refused."""

import os
import resource
import shutil
import sys

import numpy as np
import pytest

from jaxseg.config import load_config
from jaxseg.data import pack, pipeline
from jaxseg.data.datasets import get_dataset
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.decoding import arrays, pictures
from jaxseg.data.evaluation_images import evaluation_images
from jaxseg.data.samples import read_sample
from jaxseg.data.source import Source, trained_on
from jaxseg.data.survey import survey
from jaxseg.data.synthetic.writer import write_street_scenes
from jaxseg.errors import ConfigError, CorruptFileError, DataError, OutputError
from support.batches import assert_same_batches, make_config, take
from support.runs import ROOT, run
from support.tiny_datasets import HW, write_ade20k, write_cityscapes, write_photograph

TRAIN = 6
SHARDS = [f"{index:05}-of-00004.array_record" for index in range(4)]  # of 2, 2, 1 and 1 samples


def source(root, split="train", name="cityscapes", **settings):
    return Source(get_dataset(name), str(root), split, **settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    return write_street_scenes(root, train=TRAIN, val=2, image_hw=(32, 64))


@pytest.fixture(scope="module", params=[False, True], ids=["files", "decoded"])
def packed_root(request, root, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed")
    for split in ("train", "val"):
        pack.pack(source(root, split), output, decoded=request.param)
    return output


def assert_same_samples(some, others):
    assert [sample.name for sample in some] == [sample.name for sample in others]
    for one, other in zip(some, others, strict=True):
        for pixels, expected in zip(read_sample(one), read_sample(other), strict=True):
            np.testing.assert_array_equal(pixels, expected, strict=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_files(root, packed_root, workers):
    files, packed = (
        pipeline.training_batches(make_config(folder, workers=count), batch_size=4, seed=0)
        for folder, count in ((root, 0), (packed_root, workers))
    )
    assert_same_batches(take(packed, 4), take(files, 4))
    packed.close()


def test_pixels_that_no_resize_copies_are_augmented_all_the_same(root, packed_root):
    files, packed = (
        pipeline.training_batches(
            make_config(folder, ratio_range=(1.0, 1.0), crop_hw=(32, 64)), batch_size=4, seed=0
        )
        for folder in (root, packed_root)
    )
    assert_same_batches(take(packed, 4), take(files, 4))


def test_evaluation_images_are_those_of_the_files(root, packed_root):
    files, packed = (
        list(evaluation_images(source(folder, "val").samples(), make_config(folder)))
        for folder in (root, packed_root)
    )
    assert len(files) == 2
    assert_same_batches(packed, files)


def test_splits_come_one_after_the_other(root, packed_root):
    expected = source(root, "val+train").samples()
    assert_same_samples(source(packed_root, "val+train").samples(), expected)


def test_without_labels_all_is_ignored(packed_root):
    for sample in source(packed_root, labeled=False).samples():
        assert (read_sample(sample)[1] == 255).all()


def test_sizes_are_those_of_the_pixels(packed_root):
    sample = source(packed_root).samples()[0]
    assert pictures.image_hw(sample.image) == pictures.raw_label_hw(sample.label) == (32, 64)


def test_survey_is_that_of_the_files(root, packed_root):
    files, packed = (
        str(survey(CITYSCAPES, source(folder).pairs())) for folder in (root, packed_root)
    )
    assert packed == files


def test_files_lie_in_the_shards_as_they_were(root, tmp_path):
    pack.pack(source(root), tmp_path)
    for packed, file in zip(source(tmp_path).samples(), source(root).samples(), strict=True):
        assert packed.image.read_bytes() == file.image.read_bytes()
        assert packed.label.read_bytes() == file.label.read_bytes()
        assert packed.image.stem == file.image.stem


def test_a_large_dataset_has_shards_of_the_size_meant(root, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "SHARD_BYTES", 2 * 32 * 64 * 4)  # decoded, of two samples
    monkeypatch.setattr(pack, "LEAST_SHARDS", 1)
    pack.pack(source(root), tmp_path, decoded=True)
    assert len(list((tmp_path / "train").glob("*.array_record"))) == TRAIN // 2


def interrupt(monkeypatch):
    """The next packing is interrupted within the second shard."""
    whole = pack._records
    calls = []

    def records(samples, decoded):
        calls.append(samples)
        yield next(whole(samples, decoded))
        if len(calls) == 2:
            raise KeyboardInterrupt
        yield from list(whole(samples, decoded))[1:]

    monkeypatch.setattr(pack, "_records", records)


@pytest.mark.parametrize("decoded", [False, True])
def test_packing_goes_on_where_it_was_interrupted(root, tmp_path, monkeypatch, decoded):
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(KeyboardInterrupt):
            pack.pack(source(root), tmp_path, decoded=decoded)
    folder = tmp_path / "train"
    assert sorted(os.listdir(folder)) == [SHARDS[0], "samples.json"]
    with pytest.raises(DataError, match=r"'train' is packed in .* only in part"):
        source(tmp_path).samples()

    # As SIGKILL leaves it.
    (folder / f"{SHARDS[1]}.partial").write_bytes(b"begun")
    first = os.stat(folder / SHARDS[0]).st_mtime_ns
    pack.pack(source(root), tmp_path, decoded=decoded)
    assert os.stat(folder / SHARDS[0]).st_mtime_ns == first
    assert sorted(os.listdir(folder)) == [*SHARDS, "samples.json"]
    assert_same_samples(source(tmp_path).samples(), source(root).samples())


def test_packing_again_replaces_only_what_is_not_whole(root, tmp_path):
    pack.pack(source(root), tmp_path)
    before = {name: os.stat(tmp_path / "train" / name).st_mtime_ns for name in SHARDS}
    os.truncate(tmp_path / "train" / SHARDS[1], 1000)
    (tmp_path / "train" / SHARDS[2]).unlink()
    with pytest.raises(DataError, match="2 of 4 shards are not whole") as error:
        source(tmp_path).samples()
    assert f"{SHARDS[1]} has 1000 bytes instead of" in str(error.value)
    assert f"{SHARDS[2]} is missing" in str(error.value)
    pack.pack(source(root), tmp_path)
    after = {name: os.stat(tmp_path / "train" / name).st_mtime_ns for name in SHARDS}
    assert {name for name in SHARDS if before[name] != after[name]} == {*SHARDS[1:3]}
    assert_same_samples(source(tmp_path).samples(), source(root).samples())


@pytest.fixture
def damaged_shard(packed_root, tmp_path):
    """The third shard of a copy, its first record wrong by a bit: the image of the fifth sample."""
    shutil.copytree(packed_root, tmp_path, dirs_exist_ok=True)
    shard = tmp_path / "train" / SHARDS[2]
    content = bytearray(shard.read_bytes())
    content[4000] ^= 1
    shard.write_bytes(content)
    return shard


def test_a_damaged_shard_is_named(damaged_shard, tmp_path):
    image = source(tmp_path).samples()[4].image
    for read in (pictures.read_image, pictures.image_hw):
        with pytest.raises(CorruptFileError, match="cannot be read: Corrupted") as error:
            read(image)
        assert f"{image.file} (record 0 of {damaged_shard})" in str(error.value)


@pytest.mark.usefixtures("damaged_shard")
def test_a_damaged_record_gives_way_to_the_next_sample_if_it_may(tmp_path):
    config = make_config(tmp_path, skip_corrupt=True)
    batch = next(pipeline.training_batches(config, batch_size=TRAIN, seed=0))
    assert batch["replaced"].sum() == 1


def test_a_split_that_is_not_packed_is_refused_with_those_that_are(packed_root):
    with pytest.raises(DataError, match=r"'test' is not in .*, which has train, val"):
        source(packed_root, "train+test").samples()


def test_another_dataset_is_refused(packed_root):
    with pytest.raises(DataError, match=r"packed from cityscapes, .* not those of ade20k"):
        source(packed_root, name="ade20k").samples()


def test_labels_of_one_suffix_but_another_meaning_are_refused(tmp_path):
    files = "images/train2014/a.jpg", "annotations/train2014/a_labelTrainIds.png"
    write_photograph(tmp_path / "files", *files)
    pack.pack(source(tmp_path / "files", "train2014", "coco_stuff10k"), tmp_path / "packed")
    with pytest.raises(DataError, match="not those of coco_stuff164k"):
        source(tmp_path / "packed", "train2014", "coco_stuff164k").samples()


@pytest.mark.parametrize("decoded", [False, True])
def test_mapillary_is_packed_once_for_all_its_class_tables(tmp_path, decoded):
    files = "training/images/a.jpg", "training/v1.2/labels/a.png"
    write_photograph(tmp_path / "files", *files, pixels=65)
    packing = source(tmp_path / "files", "training", "mapillary66")
    pack.pack(packing, tmp_path / "packed", decoded=decoded)
    names = "mapillary_to_cityscapes", "mapillary_to_cityscapes_strict", "mapillary65"
    for name in ("mapillary66", *names):
        (packed,) = source(tmp_path / "packed", "training", name).samples()
        (file,) = source(tmp_path / "files", "training", name).samples()
        assert_same_samples([packed], [file])
        assert np.all(read_sample(packed)[1] == (65 if name == "mapillary66" else 255))


def test_custom_labels_of_another_suffix_are_refused(tmp_path):
    write_photograph(tmp_path / "files", "images/train/a.jpg", "masks/train/a.png")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    overrides = ["--config.data.train_split=train", f"--config.data.classes={tmp_path}/names.txt"]
    config = load_config("configs/custom.py", overrides)
    config.data.root = str(tmp_path / "files")
    pack.pack(trained_on(config.data), tmp_path / "packed")
    config.data.root = str(tmp_path / "packed")
    (sample,) = trained_on(config.data).samples()
    assert (read_sample(sample)[1] == 0).all()
    config.data.label_suffix = "_mask.png"
    with pytest.raises(DataError, match=r"of the kind \*\.png.* custom are \*_mask\.png"):
        trained_on(config.data).samples()


def test_changed_files_and_options_are_refused(tmp_path):
    image, _ = write_cityscapes(tmp_path / "files", "ulm_000000_000019")
    pack.pack(source(tmp_path / "files"), tmp_path / "packed")
    with pytest.raises(DataError, match=r"was packed with {'decoded': False}"):
        pack.pack(source(tmp_path / "files"), tmp_path / "packed", decoded=True)
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(DataError, match="from files or by class names that have changed"):
        pack.pack(source(tmp_path / "files"), tmp_path / "packed")


def test_folders_of_something_else_are_left_alone(root, tmp_path):
    (tmp_path / "notes.txt").touch()
    for output in (root, tmp_path):
        with pytest.raises(DataError, match="holds files, but no packed dataset"):
            pack.pack(source(root), output)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_nothing_is_written_outside_of_the_output(root, tmp_path):
    with pytest.raises(DataError, match="outside of"):
        pack.pack(source(root, "../leftImg8bit/train"), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("decoded", [False, True], ids=["files", "decoded"])
@pytest.mark.parametrize("which", [0, 1], ids=["image", "label"])
def test_a_file_that_cannot_be_read_stops_packing(tmp_path, which, decoded):
    damaged = [write_ade20k(tmp_path / "files", number) for number in range(6)][5][which]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    packing = source(tmp_path / "files", "training", "ade20k")
    with pytest.raises(CorruptFileError, match="packing leaves nothing out") as error:
        pack.pack(packing, tmp_path / "packed", decoded=decoded)
    assert str(error.value).startswith(f"{damaged} cannot be read: it ends early")
    assert SHARDS[3] not in os.listdir(tmp_path / "packed/training")


@pytest.fixture
def small_disk():
    """Files of this process may have 100 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_nothing_broken(root, tmp_path):
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}.*File too large"):
        pack.pack(source(root), tmp_path)
    assert os.listdir(tmp_path / "train") == ["samples.json"]


def test_splits_of_the_config_or_named_ones_are_packed():
    config = load_config("configs/cityscapes.py:upernet_internimage_l_mapillary")
    splits = [source.split for source in pack.sources(config, None)]
    assert splits == ["train", "train_extra", "val"]
    assert [source.split for source in pack.sources(config, "val,test")] == ["val", "test"]


def test_a_config_that_evaluates_on_another_dataset_is_packed_in_two_parts():
    config = load_config("configs/mapillary.py")
    with pytest.raises(ConfigError, match=r"--splits training,validation, .* --splits val"):
        pack.sources(config, None)
    assert len(pack.sources(config, "training,validation")) == 2


def test_arrays_survive_and_damaged_ones_are_refused():
    pixels = np.random.default_rng(0).integers(0, 256, (*HW, 3)).astype(np.uint8)
    content = arrays.to_bytes(pixels)
    np.testing.assert_array_equal(arrays.from_bytes(content), pixels, strict=True)
    objects = arrays.to_bytes(np.zeros(3, np.int32)).replace(b"<i4", b"|O ")
    for wrong in (content[:-1], content[:40], arrays.to_bytes(np.zeros(3, np.int32)), objects):
        with pytest.raises(OSError, match=r"it holds|header is damaged|not of uint8"):
            arrays.from_bytes(wrong)


def test_command_line(command, config_file, scenes, tmp_path):
    arguments = ["-m", pack.__name__, "--config", config_file, "--output", str(tmp_path / "packed")]
    call = {"cwd": ROOT, "text": True}
    call["args"] = [sys.executable, *arguments, f"--config.data.root={scenes}"]
    packed = run(call)
    assert f"cityscapes in {scenes}, val: 3 images" in packed
    assert "--config.data.root=" in packed
    shown = run(command(tmp_path / "run", "--mode=show", **{"data.root": tmp_path / "packed"}))
    assert "train: 6 images\n  sizes: 64x128 (6)\n" in shown
    assert (tmp_path / "run/samples.png").is_file()
