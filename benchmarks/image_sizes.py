"""Times photographs of fifty sizes, with images padded to few shapes and without.

    python benchmarks/image_sizes.py --photos FOLDER [--recipe FILE:VARIANT] [--json FILE]

The photographs are cut to fifty sizes, with sides from 1:1.8 to 1.8:1. A model with initial weights
segments them twice, with nothing compiled before: each image padded as in `jaxseg predict`, then
each in its own size. The result holds the programs of the model and the seconds of each way, and
the largest difference between their class probabilities.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import time

import jax
import numpy as np

from jaxseg import configure_cpu, load_config
from jaxseg.data import picture_files
from jaxseg.data.decoding import pictures
from jaxseg.distributed.sharding import make_mesh
from jaxseg.inference.batcher import Batcher, compile_forward
from jaxseg.inference.padded_shapes import program_chooser
from jaxseg.inference.predictor import Predictor
from jaxseg.models.segmentation_model import build_model, init_variables
from jaxseg.reporting.manifest import versions

SIZES = [(300 + 5 * k, 550 - 5 * k) for k in range(50)]  # height and width in pixels


def photographs(folder: pathlib.Path) -> list[np.ndarray]:
    """Returns one photograph of each size: the middle of a picture in the folder, enlarged."""
    names = picture_files.find(folder).names
    found = []
    for (height, width), name in zip(SIZES, names, strict=False):
        image = pictures.read_image(folder / name)
        enlarged = np.kron(image, np.ones((3, 3, 1), np.uint8))
        top, left = (enlarged.shape[0] - height) // 2, (enlarged.shape[1] - width) // 2
        found.append(enlarged[top : top + height, left : left + width])
    if [image.shape[:2] for image in found] != SIZES:
        raise SystemExit(f"{folder}: {len(SIZES)} pictures of at least 184 pixels are needed")
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--recipe", default="configs/ade20k.py:upernet_internimage_t")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    configure_cpu()
    images, config = photographs(options.photos), load_config(options.recipe)
    mesh = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    model = build_model(config.model)
    variables = jax.jit(init_variables, static_argnums=(0, 2))(model, jax.random.key(0), (64, 64))

    ways, probabilities = {}, {}
    for way, program in (("padded", (program_chooser(model, config),)), ("own sizes", ())):
        jax.clear_caches()
        batcher = Batcher(compile_forward(model, None, mesh), variables, mesh, 1, *program)
        predictor = Predictor(batcher, config)
        start = time.perf_counter()
        probabilities[way] = [predictor.probabilities(image) for image in images]
        seconds = time.perf_counter() - start
        ways[way] = {"programs": len(batcher.programs), "seconds": round(seconds, 1)}
        print(way, ways[way], flush=True)
    pairs = zip(probabilities["padded"], probabilities["own sizes"], strict=True)
    device = jax.devices()[0]
    result = {
        "recipe": options.recipe,
        "images": len(images),
        **ways,
        "largest_difference": max(float(np.abs(a - b).max()) for a, b in pairs),
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
