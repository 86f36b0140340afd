"""Writes masks as run lengths, in the compressed form that COCO's tools read.

A mask is read column by column. The lengths of its runs begin with a run of zeros, which may be
empty. From the fourth on, a length is written as its difference to the length two runs before. A
number becomes groups of five bits, the lowest first. Each group is a character from code 48 on,
with bit 5 set if more groups follow. The format is that of `rleToString` in COCO's maskApi.
"""

import numpy as np
from jaxtyping import Bool, Integer


def encode(mask: Bool[np.ndarray, "h w"]) -> str:
    """Returns the run lengths of a mask, compressed.

    >>> encode(np.array([[False, True], [True, True]]))
    '13'
    """
    return compress(run_lengths(mask))


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> Integer[np.ndarray, " n"]:
    """Returns the lengths of the runs of a mask, column by column, beginning with that of zeros.

    >>> run_lengths(np.array([[True, False], [True, False]])).tolist()
    [0, 2, 2]
    """
    pixels = mask.T.ravel()
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff(np.concatenate([[0], changes, [pixels.size]]))


def compress(lengths: Integer[np.ndarray, " n"]) -> str:
    """Writes run lengths as a string of characters from "0" to "o"."""
    rest = lengths.astype(np.int64)
    rest[3:] -= lengths[1:-2]
    groups, used = [], []
    follows = np.ones(len(rest), bool)
    while follows.any():
        used.append(follows)
        bits = rest & 31
        rest = rest >> 5  # keeps the sign
        ended = np.where(bits & 16, rest == -1, rest == 0)  # the rest repeats the highest bit
        follows = follows & ~ended
        groups.append(bits + np.where(follows, 32, 0) + 48)
    characters = np.stack(groups, axis=1)[np.stack(used, axis=1)]
    return characters.astype(np.uint8).tobytes().decode("ascii")
