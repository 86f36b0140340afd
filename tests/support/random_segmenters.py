"""Segmenters with random weights that compile in seconds."""

import jax
import numpy as np

from jaxseg.data.source import evaluated_on
from jaxseg.models.segmentation_model import build_model
from jaxseg.segmenter import Segmenter
from jaxseg.selftest import models as small
from support.tiny import tiny_config

TWO_STAGES = small.MODELS["InternImage, SegFormerHead"][0]
SEGFORMER = {"kind": "segformer", "num_classes": 19, "channels": 16}
MASK2FORMER = small.MASK2FORMER | {"num_classes": 19}


def random_model(head=None, seed=0, **changes):
    """Config and variables of a model on two stages of InternImage; `changes` are "a.b" keys."""
    config = tiny_config(**{"data.test_scale_wh": (128, 64), "data.test_multiple": 32} | changes)
    config.model.backbone, config.model.decode_head = TWO_STAGES, head or SEGFORMER
    config.model.auxiliary_head = None
    rng = np.random.default_rng(seed)

    def changed(leaf):
        return np.asarray(leaf) * rng.uniform(0.7, 1.3, leaf.shape).astype(np.float32)

    return config, jax.tree.map(changed, small.filled(build_model(config.model)))


def random_segmenter(head=None, seed=0, name="a model", **changes):
    """A segmenter of the 19 classes of Cityscapes."""
    config, variables = random_model(head, seed, **changes)
    dataset = evaluated_on(config.data).dataset
    return Segmenter(config, dataset, build_model(config.model), variables, name=name)


def photo(hw, seed=0):
    """An RGB image with areas of several colors."""
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    waves = [np.sin(rows / 9 + k + seed) + np.cos(columns / (7 + k)) for k in range(3)]
    return np.stack([63 * wave + 127 for wave in waves], axis=-1).astype(np.uint8)
