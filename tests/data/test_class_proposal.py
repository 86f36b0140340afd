"""A file of class names for labels that nobody has described: complete, and accepted as it is."""

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.config import load_config
from jaxseg.data.class_proposal import propose_classes
from jaxseg.data.samples import read_sample
from jaxseg.data.source import trained_on
from jaxseg.errors import DataError, OutputError
from jaxseg.show import show
from support import label_exports
from support.tiny_datasets import custom_config

# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
EXPORTS = {
    "index masks": (label_exports.index_masks, {}),
    "color masks": (label_exports.color_masks, {}),
    "LabelMe": (label_exports.labelme, {}),
    "COCO": (label_exports.coco_panoptic, {"labels": "annotations/panoptic_{split}.json"}),
    "class files": (label_exports.class_files, {"labels": "masks/{split}/{class}"}),
}


def unnamed(root, **settings):
    settings = {"data.root": str(root)} | {f"data.{key}": each for key, each in settings.items()}
    return load_config("configs/custom.py", settings, classes_needed=False)


@pytest.mark.parametrize(("write", "settings"), EXPORTS.values(), ids=EXPORTS)
def test_what_is_proposed_reads_every_label(tmp_path, write, settings, capsys):
    label_exports.write_images(tmp_path)
    write(tmp_path)
    show(unnamed(tmp_path, **settings), tmp_path / "run")
    assert "names.txt; edit the names" in capsys.readouterr().out
    lines = (tmp_path / "run/names.txt").read_text()
    found = trained_on(custom_config(tmp_path, lines, **settings).data)
    assert len(found.dataset.classes) == len(label_exports.CLASSES)
    # The classes come in another order; each one is one of the painted ones.
    for sample, (_, _, label) in zip(found.samples(), label_exports.painted(), strict=True):
        pairs = set(zip(read_sample(sample)[1].ravel(), label.ravel(), strict=True))
        assert len(pairs) == len(np.unique(label))


def masks(root, *pictures):
    (root / "masks/train").mkdir(parents=True)
    for number, pixels in enumerate(pictures):
        cv2.imwrite(str(root / f"masks/train/{number}.png"), np.array(pixels, np.uint8))
    return unnamed(root).data


def test_shares_and_the_value_255_are_told(tmp_path):
    lines = propose_classes(masks(tmp_path, [[0, 0, 0, 7]], [[0, 255, 255, 255]]))
    assert [line for line in lines[2:] if not line.startswith("#")] == [
        "0: class_0",
        "7: class_7",
        "255: ignore",
    ]
    assert "# 12.500% of the pixels, in 1 mask" in lines
    assert "# 50.000% of the pixels, in 2 masks" in lines


def test_a_proposal_that_was_edited_is_kept(tmp_path):
    config = load_config(
        "configs/custom.py",
        {"data.root": masks(tmp_path, [[0, 1]]).root},
        classes_needed=False,
    )
    show(config, tmp_path / "run")
    show(config, tmp_path / "run")  # the same again
    (tmp_path / "run/names.txt").write_text("0: road\n1: car\n")
    with pytest.raises(OutputError, match=r"names\.txt exists with other names, and is kept"):
        show(config, tmp_path / "run")
    assert (tmp_path / "run/names.txt").read_text() == "0: road\n1: car\n"


def test_suffixes_of_classes_are_found(tmp_path):
    folder = tmp_path / "masks/train"
    folder.mkdir(parents=True)
    for name in ("a_cat", "b_cat", "b_dog"):
        cv2.imwrite(str(folder / f"{name}.png"), np.ones((2, 2), np.uint8))
    lines = propose_classes(unnamed(tmp_path, label_suffix="_{class}.png").data)
    assert [line for line in lines if not line.startswith("#")] == ["cat", "dog"]
    assert "# 2 masks" in lines


def test_files_without_shapes_or_categories_are_told(tmp_path):
    (tmp_path / "masks/train").mkdir(parents=True)
    file = tmp_path / "masks/train/a.json"
    file.write_text('{"shapes": null}')
    with pytest.raises(DataError, match="names no classes"):
        propose_classes(unnamed(tmp_path).data)
    file.write_text('{"shapes": [{}]}')
    with pytest.raises(DataError, match="a shape has no label"):
        propose_classes(unnamed(tmp_path).data)
    with pytest.raises(DataError, match="is not a COCO file: its categories need"):
        propose_classes(unnamed(tmp_path, labels="masks/{split}/a.json").data)


def test_colors_of_a_palette_are_proposed_for_drawing(tmp_path):
    data = masks(tmp_path)
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    picture.putpalette([1, 2, 3, 16, 32, 48])
    picture.save(tmp_path / "masks/train/a.png")
    assert propose_classes(data)[-1] == "1: class_1 #102030"


def test_photographs_in_place_of_masks_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    with pytest.raises(DataError, match=r"there are 400 colors in the first 1 mask.*photographs"):
        propose_classes(masks(tmp_path, noise))


def test_masks_of_two_kinds_are_refused(tmp_path):
    with pytest.raises(DataError, match="masks of one value per pixel and masks of colors"):
        propose_classes(masks(tmp_path, [[1, 2]], [[[1, 2, 3]]]))


def test_no_masks_are_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match=r"no labels \(\.png .*masks/train; set config"):
        propose_classes(masks(tmp_path))
