"""Made `prepared.zip`: datasets of a few pixels as TensorFlow Datasets 4.9.10 prepares them.

    pip install tensorflow-cpu tensorflow-datasets importlib_resources opencv-python-headless
    python tests/tfds/prepare.py

`released/` has the files that the builders were given, `array_record/` and `tfrecord/` what they
made of them. `cityscapes` and `scene_parse150` are the builders of the package; what the latter
downloads lies in `released/` instead. `cells` is a dataset of one's own.
"""

import pathlib
import tempfile
import unittest.mock
import zipfile

import cv2
import numpy as np
import tensorflow_datasets as tfds

HW = (6, 8)
CITYSCAPES = {
    "train": ("aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019"),
    "val": ("frankfurt_000000_000294", "lindau_000000_000019"),
    "test": ("berlin_000000_000019",),
}
SCENES = {"training": ("ADE_train_00000001", "ADE_train_00000002"), "validation": ("ADE_val_1",)}
random = np.random.default_rng(0)


def write(path, below, *channels):
    """A picture of random values below `below`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), random.integers(0, below, (*HW, *channels)).astype(np.uint8))


def write_cityscapes(root):
    for split, names in CITYSCAPES.items():
        for name in names:
            city = f"{split}/{name.partition('_')[0]}"
            write(root / f"leftImg8bit/{city}/{name}_leftImg8bit.png", 256, 3)
            write(root / f"gtFine/{city}/{name}_gtFine_labelIds.png", 34)


def write_scenes(root):
    for split, names in SCENES.items():
        for name in names:
            write(root / f"images/{split}/{name}.jpg", 256, 3)
            write(root / f"annotations_instance/{split}/{name}.png", 101, 3)


def write_cells(root):
    for name in ("a", "b"):
        write(root / f"images/train/{name}.jpg", 256, 3)
        write(root / f"masks/train/{name}.png", 3)


def store_cells(released, **where):
    """Three grey pictures of which one is the label, and features of other kinds."""
    grey = (None, None, 1)
    features = {
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(),
        "mask": tfds.features.Image(shape=grey, encoding_format="png"),
        "instances": tfds.features.Image(shape=grey, dtype=np.uint16, encoding_format="png"),
        "height": tfds.features.Image(shape=grey, dtype=np.float32),
        "boxes": tfds.features.Sequence({"corners": tfds.features.BBoxFeature()}),
    }
    examples = {
        image.stem: {
            "file_name": f"slides/{image.name}",
            "image": str(image),
            "mask": str(released / "masks/train" / f"{image.stem}.png"),
            "instances": np.zeros((*HW, 1), np.uint16),
            "height": np.zeros((*HW, 1), np.float32),
            "boxes": [{"corners": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}],
        }
        for image in sorted((released / "images/train").iterdir())
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        "cells", "1.0.0", tfds.features.FeaturesDict(features), {"train": examples.items()}, **where
    )


def prepare(root):
    released, downloads = root / "released", root / "downloads"
    write_cityscapes(released / "cityscapes")
    write_scenes(released / "scenes")
    write_cells(released / "cells")
    downloads.mkdir()
    for folder in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(downloads / f"{folder}_trainvaltest.zip", "w") as archive:
            for path in (released / "cityscapes" / folder).rglob("*.png"):
                archive.write(path, path.relative_to(released / "cityscapes"))
    manual = tfds.download.DownloadConfig(manual_dir=downloads)
    for form in ("array_record", "tfrecord"):
        where = {"data_dir": root / form, "file_format": form}
        builder = tfds.builder("cityscapes/semantic_segmentation", **where)
        builder.download_and_prepare(download_dir=downloads, download_config=manual)
    where = {"data_dir": root / "array_record", "file_format": "array_record"}
    store_cells(released / "cells", **where)
    scenes = {"images": str(released / "scenes"), "annotations": str(released / "scenes")}
    with unittest.mock.patch.object(
        tfds.download.DownloadManager, "download_and_extract", return_value=scenes
    ):
        tfds.builder("scene_parse150", **where).download_and_prepare(download_dir=downloads)


def main():
    output = pathlib.Path(__file__).with_name("prepared.zip")
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        root = pathlib.Path(folder)
        prepare(root)
        for part in ("released", "array_record", "tfrecord"):
            for path in sorted((root / part).rglob("*.*")):
                archive.write(path, path.relative_to(root))


if __name__ == "__main__":
    main()
