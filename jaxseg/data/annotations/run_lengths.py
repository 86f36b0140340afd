"""Reads run lengths of COCO: masks column by column, as lengths that begin with a run of zeros.

The compressed form is that of `rleFrString` in COCO's maskApi; `jaxseg.predictions.rle` writes it.
pycocotools reads it too, but takes lengths that do not fit the image, and then returns pixels that
were never set.
"""

import numpy as np
from jaxtyping import Bool

MOST_GROUPS = 7  # of five bits, in a number


def decompress(text: str) -> list[int]:
    """Returns the run lengths in a compressed string.

    >>> decompress("13")
    [1, 3]

    Raises:
      ValueError: for a string that is no list of run lengths.
    """
    lengths, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift == 5 * MOST_GROUPS:
            raise ValueError("its compressed run lengths are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:  # the highest bit is the sign
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths are cut short")
    return lengths


def columns(
    lengths: np.ndarray, hw: tuple[int, int]
) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int]]:
    """Returns the columns of a mask from the first to the last with a pixel, and their (y, x).

    Args:
      lengths: the run lengths of the whole mask, as the file has them.
      hw: the (height, width) of the whole mask.

    Raises:
      ValueError: if the run lengths are not those of such a mask.
    """
    height, width = hw
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or lengths.min(initial=0) < 0:
        raise ValueError("its run lengths are not whole numbers of 0 or more")
    if (total := sum(lengths.tolist())) != height * width:
        raise ValueError(f"its run lengths add up to {total}, not to {height} times {width} pixels")
    ends = np.cumsum(lengths)
    if len(lengths) < 2:
        return np.zeros((height, 0), bool), (0, 0)
    left = int(ends[0]) // height
    last = int(ends[len(ends) - 1 - len(ends) % 2])  # the end of the last run of ones
    right = -(-last // height)
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return pixels[left * height : right * height].reshape(-1, height).T, (0, left)
