"""Reads the safetensors format: a length, a JSON header, and the bytes of the tensors.

The header holds the names, dtypes, shapes and places of the tensors.
"""

import json
import math
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from jaxseg.errors import CheckpointError

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
LENGTH_BYTES = 8  # of the little-endian integer before the header that gives its length
MAX_HEADER = 100_000_000  # the format's own limit


def read_safetensors(data: memoryview, where: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, as read-only views of `data`.

    Args:
      data: the content of the file.
      where: the file's name, for messages.

    Raises:
      CheckpointError: if the header is damaged or reaches beyond the end, if a dtype is unknown, or
        if the tensors do not fill the file from the header to the end without gaps and overlaps.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if length > MAX_HEADER or start > len(data):
        raise CheckpointError(
            f"{where}: cut short or damaged, its safetensors header of {length} bytes reaches "
            f"beyond the end of the file ({len(data)} bytes). Download the file again."
        )
    try:
        header = json.loads(bytes(data[LENGTH_BYTES:start]), object_pairs_hook=_unique)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        places = {name: _place(name, entry) for name, entry in entries.items()}
        _check_seamless(places.values(), len(data) - start)
        return {
            name: np.ndarray(entries[name]["shape"], dtype, buffer=data, offset=start + begin)
            for name, (dtype, begin, _) in places.items()
        }
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: its safetensors header cannot be used ({type(error).__name__}: {error}). "
            "Download the file again."
        ) from error


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _place(name: str, entry: dict) -> tuple[np.dtype, int, int]:
    """Returns a tensor's dtype, and the begin and end of its bytes after the header."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has shape {shape} and offsets {begin}, {end}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}; known dtypes: {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape} and {dtype} has {end - begin} bytes")
    return dtype, begin, end


def _check_seamless(places: Iterable[tuple[np.dtype, int, int]], size: int) -> None:
    """Checks that there is no gap and no overlap from the header to the end of the file."""
    expected = 0
    for begin, end in sorted((begin, end) for _, begin, end in places):
        if begin != expected:
            raise ValueError(f"a gap or an overlap before byte {begin} of the tensors' bytes")
        expected = end
    if expected != size:
        raise ValueError(f"the tensors end at byte {expected} of {size}; the file may be cut short")
