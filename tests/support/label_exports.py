"""Six painted scenes with their labels as annotation tools export them."""

import base64
import json

import cv2
import numpy as np

from jaxseg.data.synthetic import scene

CLASSES = ("ground", "flat", "construction", "object", "nature", "sky", "human", "vehicle")
COLORS = ("#101010", "#804080", "#464646", "#999999", "#6b8e23", "#4682b4", "#dc143c", "#00008e")
HW = (48, 96)
COUNT = 6


def painted():
    """Yields the image and the class indices of each scene, by name; the raw ids are grouped."""
    # The ids of Cityscapes by category: void and ground, flat, construction, object, …
    ends = np.array([6, 10, 16, 20, 22, 23, 25, 33])
    for index in range(COUNT):
        image, raw = scene.render(np.random.default_rng(index), (4 * HW[0], 4 * HW[1]), index % 3)
        image, raw = image[::4, ::4], raw[::4, ::4]
        yield f"scene_{index}", image, np.searchsorted(ends, raw).astype(np.uint8)


def write_images(root, split="train", suffix=".png"):
    folder = root / "images" / split
    folder.mkdir(parents=True)
    for name, image, _ in painted():
        cv2.imwrite(str(folder / f"{name}{suffix}"), image[..., ::-1])


def _masks(root, split, pixels_of):
    folder = root / "masks" / split
    folder.mkdir(parents=True)
    for name, _, label in painted():
        cv2.imwrite(str(folder / f"{name}.png"), pixels_of(label))


def index_masks(root, split="train"):
    """Returns the lines of the class file; so do the other functions."""
    _masks(root, split, lambda label: label)
    return CLASSES


def color_masks(root, split="train"):
    rgb = np.array([list(bytes.fromhex(color[1:])) for color in COLORS], np.uint8)
    _masks(root, split, lambda label: rgb[label][..., ::-1])
    return [f"{color}: {name}" for color, name in zip(COLORS, CLASSES, strict=True)]


def cvat(root):
    """CVAT's "Segmentation mask 1.1": JPEGImages, SegmentationClass, ImageSets, labelmap.txt."""
    write_images(root)
    (root / "images/train").rename(root / "JPEGImages")
    color_masks(root)
    (root / "masks/train").rename(root / "SegmentationClass")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{name}\n" for name, *_ in painted()))
    lines = ["# label:color_rgb:parts:actions"]
    for name, color in zip(CLASSES, COLORS, strict=True):
        lines.append(f"{name}:{','.join(map(str, bytes.fromhex(color[1:])))}::")
    return lines


def labelme(root, split="train"):
    """Every class is a picture in the file, but the largest one: a polygon around the image."""
    folder = root / "masks" / split
    folder.mkdir(parents=True)
    for name, _, label in painted():
        largest = int(np.bincount(label.ravel()).argmax())
        height, width = HW
        around = [[0, 0], [width, 0], [width, height], [0, height]]
        shapes = [{"label": CLASSES[largest], "points": around, "shape_type": "polygon"}]
        for k in np.unique(label):
            if k != largest:
                _, content = cv2.imencode(".png", np.uint8(label == k) * 255)
                shapes.append(
                    {
                        "label": CLASSES[k],
                        "points": [[0, 0], [width - 1, height - 1]],
                        "shape_type": "mask",
                        "mask": base64.b64encode(content.tobytes()).decode(),
                    }
                )
        content = {"imageHeight": height, "imageWidth": width, "shapes": shapes}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return CLASSES


def _categories():
    return [{"id": 3 * k + 1, "name": name} for k, name in enumerate(CLASSES)]


def _images():
    height, width = HW
    return [
        {"id": i, "file_name": f"{name}.png", "height": height, "width": width}
        for i, (name, *_) in enumerate(painted())
    ]


def _pixel_corners(mask):
    """A polygon of pixel corners for every pixel run of a mask, row by row."""
    polygons = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        for left, right in edges.reshape(-1, 2):
            corners = (left, y), (right, y), (right, y + 1), (left, y + 1)
            polygons.append([float(number) for corner in corners for number in corner])
    return polygons


def coco_instances(root, split="train"):
    """Polygons for the scenes with even numbers, run lengths for the others."""
    annotations = []
    for i, (_, _, label) in enumerate(painted()):
        for k in np.unique(label):
            mask = (label == k).astype(np.uint8)
            if i % 2:
                pixels = mask.T.ravel()
                changes = np.flatnonzero(np.diff(pixels, prepend=0))
                counts = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
                segmentation = {"size": list(HW), "counts": counts}
            else:
                segmentation = _pixel_corners(mask)
            annotations.append(
                {"image_id": i, "category_id": 3 * int(k) + 1, "segmentation": segmentation}
            )
    content = {"images": _images(), "annotations": annotations, "categories": _categories()}
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    return CLASSES


def coco_panoptic(root, split="train"):
    folder = root / "annotations" / f"panoptic_{split}"
    folder.mkdir(parents=True)
    annotations = []
    for i, (name, _, label) in enumerate(painted()):
        numbers = label.astype(np.int32) * 70_001 + 300 + i
        blue_green_red = np.stack([numbers >> 16 & 255, numbers >> 8 & 255, numbers & 255], axis=-1)
        cv2.imwrite(str(folder / f"{name}.png"), blue_green_red.astype(np.uint8))
        segments = [
            {"id": int(k) * 70_001 + 300 + i, "category_id": 3 * int(k) + 1}
            for k in np.unique(label)
        ]
        annotations.append({"image_id": i, "file_name": f"{name}.png", "segments_info": segments})
    content = {"images": _images(), "annotations": annotations, "categories": _categories()}
    folder.with_suffix(".json").write_text(json.dumps(content))
    return CLASSES


def class_files(root, split="train"):
    """A folder for each class, with a mask for each image that has it."""
    for name, _, label in painted():
        for k in np.unique(label):
            folder = root / "masks" / split / CLASSES[k]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{name}.png"), np.uint8(label == k) * 255)
    return CLASSES


def one_image(root, name="a", hw=(4, 6)):
    (root / "images/train").mkdir(parents=True, exist_ok=True)
    (root / "masks/train").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / f"images/train/{name}.jpg"), np.full((*hw, 3), 99, np.uint8))


def write_labelme(root, shapes, **changes):
    content = {"imageHeight": 4, "imageWidth": 6, "shapes": shapes} | changes
    (root / "masks/train/a.json").write_text(json.dumps(content))


def shape(label, *points, kind="polygon"):
    return {"label": label, "points": points, "shape_type": kind}


def write_coco(root, **changes):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]}
        ],
    } | changes
    (root / "labels.json").write_text(json.dumps(content))


COCO = {"labels": "labels.json"}
