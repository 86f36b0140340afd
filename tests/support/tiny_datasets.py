"""Datasets of a few pixels, in the folders in which the real ones are released."""

import cv2
import numpy as np
from PIL import Image

from jaxseg.config import load_config
from jaxseg.data.source import find_samples

HW = (6, 8)  # of images and labels
# A config file of the smallest model for one's own images.
OWN_CONFIG = """\
import sys
sys.path.insert(0, {tests!r})
from support.tiny import smallest_config
from configs.custom import DATA
def get_config():
    config = smallest_config()
    sizes = ("scale_wh", "crop_hw", "test_scale_wh", "test_multiple")
    config.data.update({{key: value for key, value in DATA.items() if key not in sizes}})
    return config
"""

PASCAL_LISTS = "ImageSets/SegmentationContext"


def write_cityscapes(root, name, *, split="train", kind="labelIds", label=None, image_hw=HW):
    """One image and its label; the city is the first part of the name."""
    city = name.split("_")[0]
    image_path = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    label_path = root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png"
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3)).astype(np.uint8)
    label = np.full(HW, 7, np.uint8) if label is None else label
    for path, pixels in ((image_path, image), (label_path, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)
    return image_path, label_path


def write_photograph(root, image, label, *, pixels=0, palette=True):
    """A JPEG image and an indexed PNG label of HW, the label filled with `pixels`."""
    for name in (image, label):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*HW, 3)).astype(np.uint8)
    cv2.imwrite(str(root / image), noise)
    picture = Image.fromarray(np.broadcast_to(np.uint8(pixels), HW).copy())
    if palette:
        picture = picture.convert("P")
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    picture.save(root / label)


def custom_config(tmp_path, names, **data):
    """The default config with a file of these class names, filled in."""
    (tmp_path / "names.txt").write_text(names)
    settings = {"root": tmp_path, "classes": tmp_path / "names.txt"} | data
    overrides = [f"--config.data.{key}={value}" for key, value in settings.items()]
    return load_config("configs/custom.py", overrides)


def write_ade20k(root, number, *, split="training", pixels=0):
    """One image and its label, filled with `pixels`."""
    kind = {"training": "train", "validation": "val"}[split]
    name = f"{split}/ADE_{kind}_{number:08d}"
    image, label = f"images/{name}.jpg", f"annotations/{name}.png"
    write_photograph(root, image, label, pixels=pixels, palette=False)
    return root / image, root / label


def write_coco_stuff(root, name, kind, *, pixels=0):
    """One image and its label; `kind` ends the name of the label."""
    image, label = f"images/{name}.jpg", f"annotations/{name}{kind}.png"
    write_photograph(root, image, label, pixels=pixels, palette=False)
    return root / label


def write_pascal_context(root, names, *, split="train", listed=None, pixels=0):
    """Images and labels of these names, and the list of the split with those `listed`."""
    for name in names:
        files = f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png"
        write_photograph(root, *files, pixels=pixels)
    path = root / PASCAL_LISTS / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in (names if listed is None else listed)))
    return path


def only_sample(root):
    """The sample of a Cityscapes with one training image."""
    (sample,) = find_samples("cityscapes", root, "train")
    return sample
