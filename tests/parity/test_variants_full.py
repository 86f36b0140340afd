"""Recipes make two real steps and a real evaluation at a small crop (full only).

As programs of their own: the memory of one is gone before the next starts. Variants that share a
model share what is compiled.
"""

import json
import os
import re
import sys

import cv2
import numpy as np
import pytest

from configs import custom
from support.published import RECIPES
from support.runs import ROOT, XLA_FLAGS, run

# Backbones have fewer blocks than published, all but these. At full depth, a recipe takes three to
# six minutes, and the state of InternImage-G alone takes 50 GB.
FULL_DEPTH = {
    ("cityscapes", "upernet_internimage_t"),
    ("ade20k", "upernet_deit_adapter_t"),
    ("coco_stuff10k", "mask2former_beit_adapter_b"),
    ("custom", "tiny"),
}
POST_NORM = {"depths": "(1, 1, 2, 1)", "level2_post_norm_after": "(1,)"}
SHORTER = {  # by a part of the name; the first one that fits
    "internimage_h": POST_NORM,
    "internimage_g": POST_NORM,
    "internimage": {"depths": "(1, 1, 2, 1)"},
    "adapter": {"depth": 4, "interaction_indexes": "((0, 0), (1, 1), (2, 2), (3, 3))"},
    "beit": {"depth": 4, "out_indices": "(0, 1, 2, 3)"},
    "mask2former_dinov3": {"depth": 4, "interaction_indexes": "(0, 1, 2, 3)"},
    "linear_dinov": {"depth": 4, "out_indices": "(3,)"},
}
KINDS, SPLITS = ("leftImg8bit", "gtFine"), ("train", "val")
FILES = RECIPES | {"custom": custom}


def cover():
    """A recipe for each head on each dataset, and for each head on each kind of backbone.

    Kinds of backbones differ in more than their size and weights, as InternImage-H from -L, or
    DINOv2 with registers from that without.
    """
    seen, chosen = set(), []
    for file, module in FILES.items():
        for variant in module.VARIANTS:
            head = variant.partition("_")[0]
            kind = re.sub(r"_(?:([hg])|[tsblx]+)(_.*|$)", r"_\1", variant)
            kind = re.sub(r"_vit\w+?(plus|_reg|)$", r"\1", kind)
            if not {(file, head), kind} <= seen:
                chosen.append((file, variant))
                seen |= {(file, head), kind}
    return chosen


def write_photographs(images, labels, largest, suffix=".png", image_suffix=".jpg"):
    """Two images and PNG labels of 64 × 128 pixels: blocks of the values up to `largest`."""
    random = np.random.default_rng(0)
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for name in ("a", "b"):
        noise = random.integers(0, 256, (64, 128, 3)).astype(np.uint8)
        blocks = random.integers(0, largest + 1, (4, 8)).astype(np.uint8)
        cv2.imwrite(str(images / f"{name}{image_suffix}"), noise)
        label = np.kron(blocks, np.ones((16, 16), np.uint8))
        cv2.imwrite(str(labels / f"{name}{suffix}"), label)


@pytest.fixture(scope="session")
def datasets_root(scenes, tmp_path_factory):
    """Small datasets in the folders of the real ones."""
    root = tmp_path_factory.mktemp("datasets")
    for split in ("training", "validation"):
        folder = root / "ade20k"
        write_photographs(folder / "images" / split, folder / "annotations" / split, 150)
        folder = root / "mapillary" / split
        write_photographs(folder / "images", folder / "labels", 65)
    for folder, splits, largest in (
        (root / "coco_stuff10k", ("train2014", "test2014"), 171),
        (root / "coco_stuff164k", ("train2017", "val2017"), 170),
    ):
        for split in splits:
            places = folder / "images" / split, folder / "annotations" / split
            write_photographs(*places, largest, "_labelTrainIds.png")
    folder = root / "pascal_context"
    write_photographs(folder / "JPEGImages", folder / "SegmentationClassContext", 59)
    lists = folder / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    for split in SPLITS:
        (lists / f"{split}.txt").write_text("a\nb\n")
        folder = root / "custom"
        write_photographs(folder / "images" / split, folder / "masks" / split, 2)
        folder = root / "potsdam"
        write_photographs(folder / "img_dir" / split, folder / "ann_dir" / split, 6, ".png", ".png")
    for split in ("training", "validation"):
        folder = root / "chase_db1"
        places = folder / "images" / split, folder / "annotations" / split
        write_photographs(*places, 1, "_1stHO.png", ".png")
    folder = root / "nyu_depth_v2"
    write_photographs(folder / "image", folder / "label40", 40, ".png", ".png")
    for split in ("train", "test"):
        (folder / f"{split}.txt").write_text("a\nb\n")
    (root / "custom" / "names.txt").write_text("background\ncell\nedge\n")
    links = {f"{kind}/{split}": scenes / kind / split for kind in KINDS for split in SPLITS}
    links["leftImg8bit/train_extra"] = scenes / "leftImg8bit" / "train"
    links["refinement_final/train_extra"] = scenes / "gtFine" / "train"
    for link, folder in links.items():
        (root / "cityscapes" / link).parent.mkdir(parents=True, exist_ok=True)
        (root / "cityscapes" / link).symlink_to(folder)
    return root


def train(config, settings, workdir, tmp_path_factory):
    """What training with these settings prints."""
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    environment = os.environ | {
        "JAXSEG_COMPILE_CACHE": str(tmp_path_factory.getbasetemp() / "compiled"),
        "XLA_FLAGS": XLA_FLAGS,
    }
    line = [sys.executable, "-m", "jaxseg.main", "--config", config, "--workdir", str(workdir)]
    call = {"args": [*line, *overrides], "env": environment, "cwd": ROOT, "text": True}
    return run(call, timeout_seconds=1200)


def paint_ade20k(root):
    """Photographs of one color per class in the layout of ADE20K: 8 to train on, 4 to evaluate."""
    colors = {1: (200, 40, 40), 2: (40, 200, 40), 3: (40, 40, 200), 5: (200, 200, 40)}
    random = np.random.default_rng(0)
    for split, count in (("training", 8), ("validation", 4)):
        images, annotations = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for i in range(count):
            label = random.choice(np.array(list(colors), np.uint8), (3, 4))
            label = np.kron(label, np.ones((32, 32), np.uint8))
            image = np.array([colors.get(k, (0, 0, 0)) for k in range(6)])[label]
            image = np.clip(image + random.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(images / f"ADE_{split}_{i:08d}.jpg"), image)
            cv2.imwrite(str(annotations / f"ADE_{split}_{i:08d}.png"), label)
    return root


@pytest.mark.full
def test_vit_adapter_learns_on_a_small_ade20k(tmp_path, tmp_path_factory):
    """The recipe at a crop of 64 pixels, with a rate for a hundred steps from scratch."""
    settings = {
        "init": "",
        "steps": 100,
        "batch_size": 4,
        "optim.lr": 1e-3,
        "optim.warmup_steps": 20,
        "data.root": paint_ade20k(tmp_path / "ade20k"),
        "data.crop_hw": "(64, 64)",
        "data.scale_wh": "(128, 96)",
        "data.test_scale_wh": "(128, 96)",
        "eval.crop_hw": "(64, 64)",
        "eval.stride_hw": "(42, 42)",
    }
    train("configs/ade20k.py:upernet_deit_adapter_t", settings, tmp_path / "run", tmp_path_factory)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores["aAcc"] > 0.8  # one class everywhere: about a quarter


@pytest.mark.full
@pytest.mark.parametrize(("file", "variant"), cover())
def test_recipe_trains_and_evaluates(file, variant, datasets_root, tmp_path, tmp_path_factory):
    settings = {
        "init": "",
        "steps": 2,
        "log_steps": 1,
        "batch_size": 2,
        "data.root": datasets_root / file,
        "data.crop_hw": "(64, 64)",
        "data.scale_wh": "(128, 64)",
        "data.test_scale_wh": "(128, 64)",
        "data.workers": 0,
        "eval.crop_hw": "(64, 64)",
        "eval.stride_hw": "(42, 42)",
    }
    if file == "mapillary":
        settings["data.val_root"] = datasets_root / "cityscapes"
    if file == "custom":
        settings["data.classes"] = datasets_root / "custom" / "names.txt"
    if (file, variant) not in FULL_DEPTH:
        shorter = next(SHORTER[part] for part in SHORTER if part in variant)
        settings |= {f"model.backbone.{key}": value for key, value in shorter.items()}
    printed = train(f"configs/{file}.py:{variant}", settings, tmp_path / "run", tmp_path_factory)
    assert "step 2/2" in printed
    assert "val mIoU" in printed
