"""Writes a synthetic dataset in the layout of Cityscapes, for demonstrations and tests.

The scenes come from code alone (`scene`), and the same arguments give the same scenes. Labels are
raw ids, so that the real reader, its label table and the metric are all exercised.
"""

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np

from jaxseg.atomic_files import write_bytes, write_text
from jaxseg.data.synthetic import scene
from jaxseg.errors import DataError

STAMP = "street_scenes.json"
CITIES = {
    "train": ("lindenau", "steinbruck", "streetville", "westhafen"),
    "val": ("oberfurt", "suderstadt"),
}


def write_street_scenes(root, *, train, val, image_hw=(256, 512), seed=0) -> Path:
    """Writes a set of scenes below `root`.

    A finished set with the same parameters is left as it is. A set with other parameters, or an
    interrupted one, is replaced.

    Args:
      root: the folder, which is created if it is missing.
      train: the number of training scenes.
      val: the number of validation scenes.
      image_hw: the (height, width) of every scene in pixels.
      seed: the scenes depend on it.

    Returns:
      The folder `root`.

    Raises:
      DataError: if `root` holds a dataset that was not written by this function. It is not touched.
    """
    root = Path(root)
    wanted = {
        "train": train,
        "val": val,
        "image_hw": list(image_hw),
        "seed": seed,
        "painter": _painter_version(),
    }
    stamp = root / STAMP
    if stamp.exists():
        if _read_stamp(stamp) == wanted | {"finished": True}:
            return root
    elif (root / "leftImg8bit").exists() or (root / "gtFine").exists():
        raise DataError(
            f"{root} holds a dataset that was not made here (it has no {STAMP}), so it is not "
            "overwritten. Choose another folder."
        )
    _write_stamp(stamp, wanted | {"finished": False})
    for folder in ("leftImg8bit", "gtFine"):
        shutil.rmtree(root / folder, ignore_errors=True)
    for split_index, (split, count) in enumerate((("train", train), ("val", val))):
        for index in range(count):
            rng = np.random.default_rng((seed, split_index, index))
            image, label = scene.render(rng, image_hw, feature=index % 3)
            _write_pair(root, split, index, image, label)
    # Written last, so that "finished" guarantees that everything before it is complete.
    _write_stamp(stamp, wanted | {"finished": True})
    return root


def _write_pair(root: Path, split: str, index: int, image, label) -> None:
    cities = CITIES[split]
    city = cities[index % len(cities)]
    name = f"{city}_{index // len(cities):06d}_000019"
    for kind, ending, pixels in (
        ("leftImg8bit", "leftImg8bit", cv2.cvtColor(image, cv2.COLOR_RGB2BGR)),
        ("gtFine", "gtFine_labelIds", label),
    ):
        folder = root / kind / split / city
        # Noise hardly compresses, so a higher level of compression would only cost time.
        _, encoded = cv2.imencode(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 1))
        write_bytes(folder / f"{name}_{ending}.png", encoded.data)


def _painter_version() -> str:
    """Returns a hash of the painting code, so that changed code replaces the set."""
    files = sorted(set(Path(__file__).parent.glob("*.py")) - {Path(__file__)})
    files = [file for file in files if not file.name.startswith("__")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _read_stamp(stamp: Path) -> dict | None:
    try:
        return json.loads(stamp.read_text())
    except ValueError:
        return None  # half-written: an interrupted set


def _write_stamp(stamp: Path, content: dict) -> None:
    write_text(stamp, json.dumps(content, indent=2) + "\n")
