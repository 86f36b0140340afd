"""`--mode show`: what a config means, before anything is trained."""

import collections
import pathlib

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import optim, visualize
from jaxseg.data import datasets
from jaxseg.data.pipeline import training_batches
from jaxseg.models import segmentor

SAMPLES = 12


def show(config: ConfigDict, workdir: pathlib.Path):
    """Prints the resolved config, the parameters and the dataset; writes `samples.png`.

    Raises:
      DataError: where the dataset is missing or incomplete, after the rest was printed.
    """
    print(config)
    print(parameter_table(config))
    for source in (datasets.trained_on(config.data), datasets.evaluated_on(config.data)):
        print(f"{source}: {len(source.samples())} images")
    path = workdir / "samples.png"
    workdir.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sample_sheet(config)[..., ::-1])
    print(f"augmented training samples in {path}")


def parameter_table(config: ConfigDict) -> str:
    """Parameters of every part and of the parts below it, by `eval_shape`."""
    model = segmentor.build(config.model)
    shapes = jax.eval_shape(lambda: segmentor.init(model, jax.random.key(0), config.data.crop_hw))
    counts = collections.Counter()
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"]):
        part, below, *_ = optim.path_of(key_path).split("/")
        counts[part] += leaf.size
        counts[f"  {part}/{below}"] += leaf.size
        counts["all parameters"] += leaf.size
    total = counts.pop("all parameters")
    lines = [f"{name:<40} {count:>12,}" for name, count in counts.items()]
    return "\n".join([*lines, f"{'all parameters':<40} {total:>12,}"])


def sample_sheet(config: ConfigDict) -> np.ndarray:
    """The first training samples as the model sees them, RGB uint8, their labels below."""
    data = ConfigDict(config.data)
    data.workers = 0
    batch = next(training_batches(data, batch_size=SAMPLES, seed=config.seed))
    images = batch["image"] * np.float32(data.std) + np.float32(data.mean)
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    palette = datasets.trained_on(data).dataset.palette
    return visualize.contact_sheet(list(images), list(batch["label"]), palette)
