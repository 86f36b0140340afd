"""Reads thousands of damaged inputs: each gives a right result or a JaxsegError.

    python benchmarks/fuzz.py [--count 2000] [--seed 0] [--json FILE]

The inputs are pictures, annotations, checkpoints, files of class names, settings and folders, each
changed at random in a way that follows from the seed. A worker process reads them, with limits of
time and memory. An outcome of another kind is printed with its number, which `--only NUMBER`
repeats.
"""

import argparse
import collections
import contextlib
import copy
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from converters.state_dict import find_state_dict
from converters.torch_files.torch_file import read_torch_file
from converters.torch_files.torch_writer import write_torch_file
from jaxseg.config import load_config
from jaxseg.data import picture_files
from jaxseg.data.annotations import coco
from jaxseg.data.annotations.color_masks import ColorMask
from jaxseg.data.annotations.drawn_label import DrawnLabel
from jaxseg.data.annotations.labelme import LabelMeLabel
from jaxseg.data.datasets.description import ClassNames
from jaxseg.data.decoding import pictures
from jaxseg.errors import JaxsegError
from jaxseg.predictions import rle
from jaxseg.recipes import class_list

READ_BY = ("jaxseg", "numpy", "opencv-python-headless", "pillow", "ml-collections", "pycocotools")
SECONDS = 20
MEMORY_BYTES = 2 << 30
HW = (24, 36)
RECIPE = "cityscapes:upernet_internimage_t"


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
      number: the number of the input, which decides how it was made.
      kind: what it was.
      result: "read", "refused", or what should not have happened.
      detail: the error in words.
    """

    number: int
    kind: str
    result: str
    detail: str = ""


# Sound inputs.


def picture(kind: str) -> bytes:
    """Returns a sound picture file."""
    pixels = np.random.default_rng(0).integers(0, 8, (*HW, 3)).astype(np.uint8) * 32
    content = io.BytesIO()
    options = {"JPEG2": {"progressive": True}, "WEBP": {"lossless": True}}.get(kind, {})
    if kind == "TIFF":
        options = {"compression": "tiff_lzw"}
    gray = kind == "PNG1"
    Image.fromarray(pixels[..., 0] if gray else pixels).save(content, kind.rstrip("12"), **options)
    return content.getvalue()


def checkpoint(suffix: str) -> bytes:
    """Returns a sound checkpoint of a few small tensors."""
    rng = np.random.default_rng(0)
    tensors = {f"backbone.{n}.weight": rng.random((3, 4), np.float32) for n in range(4)}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"model{suffix}")
        write_torch_file(path, tensors, {"epoch": 3, "CLASSES": ("a", "b")})
        return path.read_bytes()


def zipped() -> bytes:
    """Returns a zip archive around a checkpoint."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run/model.pth", checkpoint(".pth"))
    return content.getvalue()


# Changes.


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with a few random changes, or none."""
    data = bytearray(content)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        place, length = rng.randrange(len(data) + 1), rng.randint(1, 16)
        match rng.randrange(7):
            case 0:
                del data[place:]
            case 1:
                data[place : place + length] = rng.randbytes(length)
            case 2:
                data[place:place] = rng.randbytes(length)
            case 3:
                del data[place : place + length]
            case 4:  # a large number
                data[place : place + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)])
            case 5:
                data[place:place] = data[: rng.randrange(len(data) + 1)]
            case _:
                if data:
                    data[place % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data[: 1 << 20])


CLASSES = ClassNames({"car": 0, "road": 1}, 255)
ODD = (None, True, [], {}, "x", "", -1, 0, 7, 1e30, -1e30, float("nan"), float("inf"), 10**25)
ODD += ("9" * 400, [[]], [[1]], [1, 2, 3], "zzzz", 2**31, 0.5)
LINES = (
    "road",
    "0: road",
    "1 : car",
    "255: ignore",
    "ignore",
    "",
    "# note",
    ":",
    "-1: x",
    "1e3: y",
)
LINES += ("99999999999999999999: z", "0:", "\ufeffa", "a\x00b", "地面", "a" * 5000, "3: 4: 5", "\t")
KEYS = ("data.root", "batch_size", "optim.lr", "eval.mode", "data.crop_hw", "model.backbone.kind")
KEYS += ("steps", "nothing", "data", "checkpoint.allow", "optim.betas", "model.auxiliary_head", "")
VALUES = ("1", "-1", "1e999", "nan", "x", "", "(1,2)", "(1,", "None", "True", "{}", "[[", "1,2,3")
VALUES += ("9" * 400, "__import__('os')", "地", "'", '"', "\\", "0x1f", "1_0")
NAMES = ("a.jpg", "a.JPG", "b.png", ".hidden.jpg", "._a.jpg", "a_classes.png", "a_overlay.png")
NAMES += ("x" * 200 + ".png", "no suffix", "é.tif", "new\nline.png", "a.jpeg", "Thumbs.db", " .png")


# Readers: each gets a number generator and an empty folder.


def read_picture(kind: str) -> Callable:
    def read(rng, folder):
        path = folder / f"input.{kind.lower()}"
        path.write_bytes(mutated(picture(kind), rng))
        results = []
        for function, axes in ((pictures.read_image, 3), (pictures.read_raw_label, 2)):
            try:
                found = function(path)
            except JaxsegError as error:
                results.append(error)
                continue
            assert found.dtype == np.uint8
            assert found.ndim == axes
        for function in (pictures.image_hw, pictures.raw_label_hw):
            with contextlib.suppress(JaxsegError):
                assert len(function(path)) == 2
        if len(results) == 2:
            raise results[0]

    return read


def read_checkpoint(make: Callable[[], bytes]) -> Callable:
    def read(rng, folder):
        path = folder / "model.pth"
        path.write_bytes(mutated(make(), rng))
        found = find_state_dict(read_torch_file(path))
        assert all(isinstance(tensor, np.ndarray) for tensor in found.tensors.values())
        for tensor in found.tensors.values():
            tensor.sum(dtype=np.float64) if tensor.dtype.kind in "fiu" else tensor.tobytes()

    return read


def read_index(rng, folder):
    (folder / "a-00001-of-00001.safetensors").write_bytes(checkpoint(".safetensors"))
    names = {f"backbone.{n}.weight": "a-00001-of-00001.safetensors" for n in range(4)}
    text = json.dumps({"weight_map": names}).encode()
    (folder / "a.safetensors.index.json").write_bytes(mutated(text, rng))
    read_torch_file(folder)


def odd_json(content: object, rng: random.Random) -> bytes:
    """Returns a JSON file with some of its values changed, or damaged as bytes."""
    whole = {"": json.loads(json.dumps(content))}
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        node, key = whole, ""
        while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(whole[""]).encode()
    return mutated(text, rng) if rng.random() < 0.2 else text


def read_labelme(rng, folder):
    corners = [[2, 3], [20, 4.5], [15, 20]]
    kinds = {"polygon": corners, "rectangle": corners[:2], "circle": corners[:2]}
    shapes = [{"label": "car", "points": p, "shape_type": k} for k, p in kinds.items()]
    content = {"imageHeight": HW[0], "imageWidth": HW[1], "shapes": shapes}
    path = folder / "a.json"
    path.write_bytes(odd_json(content, rng))
    check_drawn(LabelMeLabel(path, CLASSES))


def read_coco(rng, folder):
    counts = np.array([100, 50, HW[0] * HW[1] - 150])
    compressed = rle.compress(counts)
    runs = {"size": list(HW), "counts": counts.tolist()}
    segmentations = ([[2, 3, 20, 4.5, 15, 20]], runs, {"size": list(HW), "counts": compressed})
    annotations = [
        {"id": k, "image_id": 7, "category_id": 1, "segmentation": segmentation}
        for k, segmentation in enumerate(segmentations)
    ]
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": HW[0], "width": HW[1]}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": annotations,
    }
    path = folder / "labels.json"
    path.write_bytes(odd_json(content, rng))
    for label in coco.labels(path, CLASSES).values():
        check_drawn(label)


def read_color_mask(rng, folder):
    path = folder / "a.png"
    path.write_bytes(mutated(picture("PNG1"), rng))
    check_drawn(ColorMask(path, tuple((gray, gray, gray) for gray in range(0, 256, 32))))


def check_drawn(label: DrawnLabel):
    """Draws a label; its size must be the one that is found without drawing it."""
    hw = label.find_hw()
    drawn = label.draw().label
    assert drawn.dtype == np.uint8
    assert drawn.shape == hw


def read_classes(rng, folder):
    path = folder / "names.txt"
    lines = rng.choice((LINES, LINES[1:4], ("road", "car", "", "# note", "地面")))
    text = "\n".join(rng.sample(lines, rng.randint(0, len(lines))))
    path.write_bytes(mutated(text.encode(), rng) if rng.random() < 0.3 else text.encode())
    names = class_list.parse_lines(class_list.read_lines(str(path))).classes
    assert names


def read_settings(rng, folder):
    changes = [
        f"--config.{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.randint(1, 4))
    ]
    load_config(RECIPE, changes)


def read_folder(rng, folder):
    places = [folder / "set"]
    for _ in range(rng.randint(0, 5)):
        name = rng.choice(["deep", ".git", "__MACOSX", "@eaDir", "x y", "é"])
        places.append(rng.choice(places) / name)
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for _ in range(rng.randint(0, 20)):
        path = rng.choice(places) / rng.choice(NAMES)
        if path.exists() or path.is_symlink():
            continue
        match rng.randrange(6):
            case 0:
                path.symlink_to(rng.choice([*places, folder / "nowhere", path]))
            case 1:
                os.mkfifo(path)
            case 2:
                path.mkdir()
            case _:
                path.write_bytes(rng.randbytes(rng.randrange(50)))
    found = picture_files.find(folder / "set")
    picture_files.describe(found.skipped)
    for name in found.names:
        try:
            pictures.read_image(folder / "set" / name)
        except JaxsegError:
            continue


READERS: dict[str, Callable] = {
    **{
        kind: read_picture(kind) for kind in ("PNG", "PNG1", "JPEG", "JPEG2", "TIFF", "WEBP", "BMP")
    },
    ".pth": read_checkpoint(lambda: checkpoint(".pth")),
    ".safetensors": read_checkpoint(lambda: checkpoint(".safetensors")),
    ".zip": read_checkpoint(zipped),
    "index": read_index,
    "color mask": read_color_mask,
    "LabelMe": read_labelme,
    "COCO": read_coco,
    "classes": read_classes,
    "settings": read_settings,
    "folder": read_folder,
}


def try_input(number: int, seed: int) -> Outcome:
    """Makes one input and reads it, in a process that `prepare_worker` has prepared."""
    kind = list(READERS)[number % len(READERS)]
    rng = random.Random(f"{seed}/{number}")
    with tempfile.TemporaryDirectory() as name:
        outer = pathlib.Path(name)
        folder = outer / "input"
        folder.mkdir()
        signal.alarm(SECONDS)
        try:
            READERS[kind](rng, folder)
            outcome = Outcome(number, kind, "read")
        except JaxsegError as error:
            outcome = Outcome(number, kind, "refused", str(error)[:300])
        except BaseException as error:
            outcome = Outcome(number, kind, type(error).__name__, str(error)[:300])
        finally:
            signal.alarm(0)
        if sorted(path.name for path in outer.iterdir()) != ["input"]:
            outcome = Outcome(number, kind, "wrote outside of its folder")
    return outcome


def prepare_worker():
    """Limits the memory of a worker, and turns its alarm into an error."""
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    signal.signal(signal.SIGALRM, _too_late)


def _too_late(number, frame):
    raise TimeoutError(f"not done after {SECONDS} s")


def fuzz(numbers: range, seed: int, workers: int = 1) -> list[Outcome]:
    """Returns the outcome of every input."""
    chunk = max(len(numbers) // workers // 4, 1)
    with ProcessPoolExecutor(workers, initializer=prepare_worker) as pool:
        return list(pool.map(try_input, numbers, [seed] * len(numbers), chunksize=chunk))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this input alone, in this process")
    parser.add_argument("--json", type=pathlib.Path, help="write the counts to this file")
    options = parser.parse_args()
    if options.only is not None:
        print(try_input(options.only, options.seed))
        return
    start = time.monotonic()
    outcomes = fuzz(range(options.count), options.seed, os.cpu_count() or 1)
    seconds = round(time.monotonic() - start)
    counts = collections.Counter((outcome.kind, outcome.result) for outcome in outcomes)
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind:<14}{result:<24}{count:>6}")
    odd = [outcome for outcome in outcomes if outcome.result not in ("read", "refused")]
    for outcome in odd:
        print(*outcome, sep="  ")
    print(f"{len(outcomes)} inputs in {seconds} s, {len(odd)} with another outcome")
    if options.json:
        result = {
            "date": datetime.date.today().isoformat(),
            "python": sys.version.split()[0],
            "versions": {name: importlib.metadata.version(name) for name in READ_BY},
            "inputs": len(outcomes),
            "seed": options.seed,
            "seconds": seconds,
            "counts": {f"{kind} {result}": n for (kind, result), n in sorted(counts.items())},
            "others": len(odd),
        }
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    sys.exit(bool(odd))


if __name__ == "__main__":
    main()
