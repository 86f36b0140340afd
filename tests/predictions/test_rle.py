"""Run lengths are those of pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxseg.predictions import rle

# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPES = [(1, 1), (3, 5), (50, 70), (1, 300), (300, 1)]


def masks(shape):
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.5, 0.99, 1):
        mask = rng.random(shape) < share
        yield mask
        yield np.kron(mask, np.ones((40, 1), bool))  # long runs, whose lengths differ much
        yield ~mask


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mask_is_written_as_pycocotools_writes_it_and_read_back(shape):
    for mask in masks(shape):
        counts = rle.encode(mask)
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert counts == expected["counts"].decode()
        read = coco_mask.decode({"size": list(mask.shape), "counts": counts})
        np.testing.assert_array_equal(read, mask)


def test_a_run_of_a_million_pixels_takes_a_few_characters():
    mask = np.zeros((1024, 2048), bool)
    mask[:, 1024:] = True
    assert len(rle.encode(mask)) < 12
