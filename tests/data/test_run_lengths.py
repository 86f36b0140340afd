"""Run lengths of COCO: read as they are written, and refused if they do not fit."""

import numpy as np
import pytest
from pycocotools import mask as tools

from jaxseg.data.annotations.run_lengths import columns, decompress
from jaxseg.predictions import rle

# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def masks():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (30, 41)):
        yield np.zeros((height, width), bool)
        yield np.ones((height, width), bool)
        for share in (0.02, 0.5, 0.98):
            yield rng.random((height, width)) < share
        block = np.zeros((height, width), bool)
        block[height // 3 : height // 2 + 1, width // 3 : width // 2 + 1] = True
        yield block


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: f"{mask.shape}-{mask.sum()}")
def test_masks_are_read_as_they_were_written(mask):
    for text in (rle.encode(mask), tools.encode(np.asfortranarray(mask, np.uint8))["counts"]):
        lengths = decompress(text if isinstance(text, str) else text.decode())
        assert lengths == rle.run_lengths(mask).tolist()
        part, (top, left) = columns(np.array(lengths), mask.shape)
        found = np.zeros_like(mask)
        found[top : top + part.shape[0], left : left + part.shape[1]] = part
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("text", ["é", "/", "oooooooo1", "o"])
def test_damaged_strings_are_refused(text):
    with pytest.raises(ValueError, match=r"damaged|cut short"):
        decompress(text)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([5], "add up to 5, not to 4 times 6 pixels"),
        ([10**12, 3], "add up to 1000000000003"),
        ([-1, 25], "not whole numbers of 0 or more"),
        ([1.5, 22.5], "not whole numbers"),
        ([[24]], "not whole numbers"),
        ([], "not whole numbers|add up to 0"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, said):
    with pytest.raises(ValueError, match=said):
        columns(np.array(lengths), (4, 6))
