"""Classes of images that one window shows whole: computed where their logits are."""

import numpy as np
import pytest

from jaxseg.inference.batcher import Batcher
from jaxseg.inference.predictor import Predictor
from support.tiny import tiny_config
from support.windowed import make_batcher


class Fetching(Batcher):
    """Keeps the types of what it fetched from the devices."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.fetched = set()

    def _fetch(self):
        self.fetched.add(self._running[0][1].dtype)
        super()._fetch()


@pytest.mark.parametrize("devices", [1, 4])
def test_logits_of_one_window_stay_on_the_devices(devices):
    """Of images that are reduced, enlarged and padded, of one tile and of many."""
    config = tiny_config(**{"data.test_scale_wh": (640, 320), "data.test_multiple": 32})
    sizes = [(64, 128), (700, 1400), (320, 640), (300, 637), (1030, 515), (64, 130)]
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*hw, 3)).astype(np.uint8) for hw in sizes]
    batcher = make_batcher(
        lambda images: images[:, ::4, ::4], devices, crops_per_device=2, kind=Fetching
    )
    predictor = Predictor(batcher, config)
    expected = [np.argmax(found, axis=-1) for found in predictor.probability_maps(images)]

    batcher.fetched.clear()
    for classes, probable in zip(predictor.class_maps(images), expected, strict=True):
        np.testing.assert_array_equal(classes, probable)
    assert batcher.fetched == {np.dtype("uint8")}
