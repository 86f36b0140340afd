"""A survey of a dataset counts what is there and names what is wrong, without stopping at it."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.datasets import get_dataset
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.mapillary import MAPILLARY_TO_CITYSCAPES
from jaxseg.data.decoding import pictures
from jaxseg.data.source import Source
from jaxseg.data.survey import survey
from support.tiny_datasets import HW, write_ade20k, write_cityscapes, write_photograph


def survey_of(name, root, split):
    source = Source(get_dataset(name), str(root), split)
    return survey(source.dataset, source.pairs())


def test_sizes_and_values_are_counted(tmp_path):
    raw = np.full(HW, 7, np.uint8)
    raw[0] = 26
    raw[1, 0] = 4
    write_cityscapes(tmp_path, "ulm_000000_000019", label=raw)
    write_cityscapes(tmp_path, "ulm_000001_000019")
    found = survey_of("cityscapes", tmp_path, "train")
    assert found.sizes == {HW: 2}
    assert not found.faults
    ((form, values),) = found.values.items()
    assert form.suffix == "_gtFine_labelIds.png"
    assert {k: values.pixels[k] for k in np.flatnonzero(values.pixels)} == {26: 8, 4: 1, 7: 87}
    assert {k: values.images[k] for k in np.flatnonzero(values.images)} == {26: 1, 4: 1, 7: 2}
    classes = CITYSCAPES.classes
    present = {classes[k]: n for k, n in enumerate(found.class_pixels()) if n}
    assert present == {"road": 87, "car": 8}
    text = str(found)
    assert "sizes: 6x8 (2)" in text
    for line in ("7  0 road  90.625%  2", "26  13 car  8.333%  1", "4  (ignored)  1.042%  1"):
        assert line.split() in [shown.split() for shown in text.splitlines()]
    assert "classes without a pixel (17): sidewalk, building" in text


def test_forms_of_labels_are_counted_apart(tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019")
    write_cityscapes(tmp_path, "ulm_000001_000019", kind="labelTrainIds")
    found = survey_of("cityscapes", tmp_path, "train")
    assert len(found.values) == 2
    assert found.class_pixels()[[0, 7]].tolist() == [48, 48]


def test_files_without_a_counterpart_are_named(tmp_path):
    _, label = write_cityscapes(tmp_path, "ulm_000000_000019")
    label.unlink()
    image, _ = write_cityscapes(tmp_path, "ulm_000001_000019")
    image.unlink()
    write_cityscapes(tmp_path, "ulm_000002_000019")
    found = survey_of("cityscapes", tmp_path, "train")
    assert found.sizes == {HW: 1}
    (fault,) = found.faults
    assert fault.endswith(
        "ulm_000000_000019_leftImg8bit.png has no label"
        " (*_gtFine_labelTrainIds.png or *_gtFine_labelIds.png)"
    )
    assert "labels without an image (1):\n" in str(found)
    assert "ulm_000001_000019_gtFine_labelIds.png" in str(found)


def test_values_outside_the_table_are_counted_and_their_files_named(tmp_path):
    raw = np.full(HW, 7, np.uint8)
    raw[0, :3] = 40, 41, 200
    _, label = write_cityscapes(tmp_path, "ulm_000000_000019", label=raw)
    found = survey_of("cityscapes", tmp_path, "train")
    assert found.faults == [f"{label} holds 40-41, 200: not in the table"]
    assert str(found).count("NOT IN THE TABLE") == 3


@pytest.mark.parametrize("which", [0, 1], ids=["image", "label"])
def test_damaged_files_are_named_and_the_others_counted(tmp_path, which):
    write_ade20k(tmp_path, 1, pixels=1)
    damaged = write_ade20k(tmp_path, 2, pixels=1)[which]
    damaged.write_bytes(b"")
    found = survey_of("ade20k", tmp_path, "training")
    assert found.faults == [f"{damaged} cannot be read: it is empty"]
    assert sum(values.images.sum() for values in found.values.values()) == 1


def test_pairs_of_different_sizes_are_named_by_the_size_that_is_read(tmp_path):
    image, _ = write_ade20k(tmp_path, 1, pixels=1)
    assert not survey_of("ade20k", tmp_path, "training").faults
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(image, exif=exif)
    assert pictures.image_hw(image) == pictures.read_image(image).shape[:2] == HW[::-1]
    found = survey_of("ade20k", tmp_path, "training")
    (fault,) = found.faults
    assert fault.startswith(f"{image} is 8x6, its label 6x8 (images are rotated")


def test_many_sizes_are_summed_up(tmp_path):
    for number in range(8):
        image, label = write_ade20k(tmp_path, number, pixels=1)
        for path in (image, label):
            Image.open(path).resize((10 + number, 20 - number)).save(path)
    found = survey_of("ade20k", tmp_path, "training")
    assert len(found.sizes) == 8
    assert "and 3 more, 13 to 15 high and 15 to 17 wide" in str(found)


def test_values_of_one_class_are_summed_up(tmp_path):
    road = np.flatnonzero(MAPILLARY_TO_CITYSCAPES.label_formats[0].train_ids == 0)[:2]
    pixels = np.full(HW, road[0], np.uint8)
    pixels[0] = road[1]
    pixels[1] = np.flatnonzero(MAPILLARY_TO_CITYSCAPES.label_formats[0].train_ids == 13)[0]
    files = "training/images/a.jpg", "training/labels/a.png"
    write_photograph(tmp_path, *files, pixels=pixels)
    text = str(survey_of("mapillary_to_cityscapes", tmp_path, "training"))
    for line in ("0 road 83.333%", "13 car 16.667%"):
        assert line.split() in [shown.split() for shown in text.splitlines()]


def test_a_dataset_without_a_pixel_of_any_class_is_a_fault(tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019", label=np.zeros(HW, np.uint8))
    (fault,) = survey_of("cityscapes", tmp_path, "train").faults
    assert fault == "none of the 1 labels has a pixel of any class"
