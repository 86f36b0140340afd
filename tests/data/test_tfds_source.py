"""Datasets of TensorFlow Datasets give what the files give that they were made of."""

import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxseg.config import LATER_OF_OWN_DATA, load_config
from jaxseg.data import pipeline
from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.description import IGNORE, UNKNOWN
from jaxseg.data.decoding import pictures
from jaxseg.data.evaluation_images import evaluation_images
from jaxseg.data.readers import scene_parse150
from jaxseg.data.samples import read_sample
from jaxseg.data.source import Source, evaluated_on, trained_on
from jaxseg.data.survey import survey
from jaxseg.errors import ConfigError, CorruptFileError, DataError
from support.batches import assert_same_batches, make_config, take
from support.runs import ROOT

CITY = "tfds:cityscapes/semantic_segmentation"
CITY_FOLDER = "array_record/cityscapes/semantic_segmentation/1.0.0"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with zipfile.ZipFile(ROOT / "tests/tfds/prepared.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def copied(prepared, tmp_path):
    """What was prepared of Cityscapes, to be damaged: the root and the folder of the records."""
    shutil.copytree(prepared / CITY_FOLDER, tmp_path / CITY_FOLDER)
    return tmp_path / "array_record", tmp_path / CITY_FOLDER


def city(root, split, kind=CITY, **settings):
    return Source(CITYSCAPES, str(root / "array_record"), split, kind=kind, **settings)


def city_files(root, split):
    return Source(CITYSCAPES, str(root / "released/cityscapes"), split)


def scenes(root, split, **settings):
    return Source(ADE20K, str(root / "array_record"), split, kind="tfds:scene_parse150", **settings)


def cells_config(root, source):
    settings = {"dataset": "custom", "class_lines": ("background", "nucleus", "wall")}
    settings |= {"images": "images/{split}", "image_suffix": ".jpg"}
    settings |= {"labels": "masks/{split}", "label_suffix": ""} | LATER_OF_OWN_DATA
    return make_config(root, source=source, **settings)


def assert_same_samples(some, others):
    some, others = ({sample.name: sample for sample in samples} for samples in (some, others))
    assert some.keys() == others.keys()
    for name, sample in some.items():
        for one, other in zip(read_sample(sample), read_sample(others[name]), strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("val", 2), ("test", 1)])
def test_cityscapes_has_the_names_pixels_and_train_ids_of_its_files(prepared, split, count):
    samples = city(prepared, split).samples()
    assert len(samples) == count
    assert_same_samples(samples, city_files(prepared, split).samples())


def test_splits_are_joined_in_their_order(prepared):
    both = [sample.name for sample in city(prepared, "val+train").samples()]
    val, train = ([s.name for s in city(prepared, split).samples()] for split in ("val", "train"))
    assert both == val + train


def test_version_may_be_given_and_the_newest_is_read_otherwise(prepared, copied):
    root, folder = copied
    for version in ("0.9.0", "10.0.0", "incomplete.QWERTY_11.0.0"):
        shutil.copytree(folder, folder.with_name(version))
    for kind, version in ((CITY, "10.0.0"), (f"{CITY}:1.0.0", "1.0.0")):
        source = Source(CITYSCAPES, str(root), "val", kind=kind)
        assert f"/{version}:" in str(source.samples()[0].image)


def test_dataset_of_ones_own_is_read_without_its_builder(prepared):
    records = cells_config(prepared / "array_record", "tfds:cells")
    files = cells_config(prepared / "released/cells", "files")
    assert_same_samples(*(trained_on(config).samples() for config in (records, files)))


def test_scene_parse150_has_the_countable_classes_of_ade20k(prepared):
    (sample,) = scenes(prepared, "validation").samples()
    assert sample.name == "test_000000"  # its records name nothing
    released = prepared / "released/scenes"
    image, label = read_sample(sample)
    original = pictures.read_image(released / "images/validation/ADE_val_1.jpg")
    np.testing.assert_array_equal(image, original, strict=True)
    red = pictures.read_image(released / "annotations_instance/validation/ADE_val_1.png")[..., 2]
    np.testing.assert_array_equal(label, scene_parse150.LABELS.train_ids[red], strict=True)


def test_countable_classes_are_those_of_the_challenge():
    table = scene_parse150.LABELS.train_ids
    known = {0: IGNORE, 101: UNKNOWN}
    named = {1: "bed", 4: "person", 9: "car", 50: "bus", 83: "bicycle", 100: "flag"}
    known |= {value: ADE20K.classes.index(name) for value, name in named.items()}
    assert {value: table[value] for value in known} == known


def test_images_are_read_without_labels(prepared):
    for source in (city(prepared, "test", labeled=False), scenes(prepared, "val", labeled=False)):
        (sample,) = source.samples()
        image, label = read_sample(sample)
        assert image.shape == (6, 8, 3)
        assert (label == IGNORE).all()


def test_training_batches_are_the_same_with_workers(prepared):
    root = prepared / "array_record"
    configs = [make_config(root, source=CITY, workers=workers) for workers in (0, 2)]
    one, other = (pipeline.training_batches(c, batch_size=2, seed=0) for c in configs)
    assert_same_batches(take(one, 4), take(other, 4))
    other.close()


def test_samples_travel_to_workers_as_names_not_as_records(prepared):
    samples = city(prepared, "train").samples()
    before = pickle.dumps(samples)
    read_sample(samples[0])
    assert pickle.dumps(samples) == before
    assert_same_samples(pickle.loads(before), samples)


def test_evaluation_sees_every_image(prepared):
    config = make_config(prepared / "array_record", source=CITY)
    samples = evaluated_on(config).samples()
    seen = list(evaluation_images(samples, config))
    assert [item["index"] for item in seen] == [0, 1]
    for item, sample in zip(seen, samples, strict=True):
        np.testing.assert_array_equal(item["image"], read_sample(sample)[0], strict=True)


def test_survey_counts_as_in_files(prepared):
    found = [
        survey(CITYSCAPES, source.pairs())
        for source in (city(prepared, "train"), city_files(prepared, "train"))
    ]
    assert found[0].faults == []
    assert str(found[0]) == str(found[1])


def test_evaluation_may_have_another_source_than_training(prepared):
    config = make_config(prepared / "released/cityscapes")
    assert str(evaluated_on(config)).endswith("released/cityscapes, val")
    config.val_source, config.val_root = CITY, str(prepared / "array_record")
    assert trained_on(config) == city_files(prepared, "train")
    assert evaluated_on(config) == city(prepared, "val")
    config = make_config(prepared / "array_record", source=CITY)
    assert trained_on(config) == city(prepared, "train")
    assert evaluated_on(config) == city(prepared, "val")
    assert f"cityscapes from {CITY} in " in str(evaluated_on(config))


def test_config_of_before_there_were_sources_means_files():
    config = ConfigDict(load_config("configs/cityscapes.py").to_dict())
    assert trained_on(config.data).kind == "files"
    del config.data.source, config.data.val_source
    assert trained_on(config.data).kind == evaluated_on(config.data).kind == "files"


@pytest.mark.parametrize("wrong", ["tfsd:cityscapes", "file", "tfds"])
def test_another_source_is_refused(prepared, wrong):
    with pytest.raises(ConfigError, match=rf"source={wrong}: 'files' or 'tfds:NAME'"):
        city(prepared, "val", kind=wrong).samples()


def test_what_is_not_prepared_is_told_with_what_is_and_how_to(prepared):
    with pytest.raises(DataError, match="No prepared TFDS dataset cityscapes/semantic ") as error:
        city(prepared, "val", kind="tfds:cityscapes/semantic").samples()
    assert "found cells, cityscapes/semantic_segmentation, scene_parse150" in str(error.value)
    assert 'tfds.builder("cityscapes/semantic"' in str(error.value)
    with pytest.raises(DataError, match="found no dataset at all"):
        Source(CITYSCAPES, str(prepared / "nowhere"), "val", kind=CITY).samples()


def test_another_format_is_refused_with_how_to_prepare_it(prepared):
    source = Source(CITYSCAPES, str(prepared / "tfrecord"), "val", kind=CITY)
    with pytest.raises(DataError, match=r"in the format tfrecord(.|\n)*file_format=\"array_record"):
        source.samples()


def test_unknown_split_is_refused_with_those_there_are(prepared):
    with pytest.raises(DataError, match="no split 'tiny'; there are train, validation, test"):
        city(prepared, "train+tiny").samples()
    with pytest.raises(DataError, match="no split 'val'; there are train"):
        evaluated_on(cells_config(prepared / "array_record", "tfds:cells")).samples()


@pytest.mark.parametrize(
    ("missing", "said"), [("image_left", "images"), ("segmentation", "labels")]
)
def test_without_such_features_those_there_are_are_listed(copied, missing, said):
    root, folder = copied
    file = folder / "features.json"
    features = json.loads(file.read_text())
    kept = features["featuresDict"]["features"]
    features["featuresDict"]["features"] = {k: kept[k] for k in kept if not k.startswith(missing)}
    file.write_text(json.dumps(features))
    source = Source(CITYSCAPES, str(root), "val", kind=CITY)
    with pytest.raises(DataError, match=f"Cannot tell which feature .* holds the {said}") as error:
        source.samples()
    assert "\n  image_id: Text(" in str(error.value)


def test_missing_file_of_a_split_is_named(copied):
    root, folder = copied
    name = "cityscapes-train.array_record-00000-of-00001"
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"1 files of .* are missing:\n.*{name}"):
        Source(CITYSCAPES, str(root), "train", kind=CITY).samples()


def test_damaged_record_is_named_by_its_place_and_may_be_skipped(copied):
    root, folder = copied
    file = folder / "cityscapes-train.array_record-00000-of-00001"
    content = bytearray(file.read_bytes())
    content[700] ^= 255  # in the second of three
    file.write_bytes(content)
    samples = Source(CITYSCAPES, str(root), "train", kind=CITY).samples()
    read_sample(samples[0])
    read_sample(samples[2])
    with pytest.raises(CorruptFileError, match=r"train_000001, train\[1\] cannot be read: Corrupt"):
        read_sample(samples[1])
    config = make_config(root, source=CITY, skip_corrupt=True)
    batch = next(pipeline.training_batches(config, batch_size=3, seed=0))
    assert batch["replaced"].sum() == 1


def test_missing_package_is_told(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxseg\[tfds\]'"):
        city(prepared, "val").samples()


WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import ModuleSpec

class Refuse:
    def find_spec(self, name, *_):
        return ModuleSpec(name, self) if name == "tensorflow" else None
    def create_module(self, spec):
        raise AssertionError("TensorFlow is imported")

sys.meta_path.insert(0, Refuse())  # in the workers, too, which begin with this module
sys.path.insert(0, {tests!r})
from support.batches import make_config
from jaxseg.data import pipeline, survey
from jaxseg.data.source import Source, get_dataset

if __name__ == "__main__":
    for workers in (0, 2):
        config = make_config({root!r}, source={city!r}, workers=workers)
        batches = pipeline.training_batches(config, batch_size=2, seed=0)
        next(batches), next(batches)
        batches.close()
    for name, kind in (("cityscapes", {city!r}), ("ade20k", "tfds:scene_parse150")):
        source = Source(get_dataset(name), {root!r}, "val", kind=kind)
        assert not survey.survey(source.dataset, source.pairs()).faults
    assert "tensorflow" not in sys.modules
    print("tensorflow_datasets" in sys.modules)
"""


def test_tensorflow_is_never_imported_and_nothing_is_said(prepared, tmp_path):
    script = tmp_path / "read.py"
    tests, root = str(ROOT / "tests"), str(prepared / "array_record")
    script.write_text(WITHOUT_TENSORFLOW.format(tests=tests, root=root, city=CITY))
    command = [sys.executable, "-W", "error", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)
