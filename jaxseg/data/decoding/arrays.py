"""Pictures that are stored decoded: arrays of uint8 in the form of `.npy` files."""

import io
from typing import BinaryIO

import numpy as np

MAGIC = np.lib.format.MAGIC_PREFIX


def begins(file: BinaryIO) -> bool:
    """Whether a file is one; it stands at its beginning, before and after."""
    beginning = file.read(len(MAGIC))
    file.seek(0)
    return beginning == MAGIC


def to_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def from_bytes(content: bytes) -> np.ndarray:
    """Not copied, and so read-only. Raises OSError, as decoders of pictures do."""
    file = io.BytesIO(content)
    shape = read_shape(file)
    values = np.frombuffer(content, np.uint8, offset=file.tell())
    if values.size != np.prod(shape):
        raise OSError(f"it holds {values.size} values, where {shape} are needed")
    return values.reshape(shape)


def read_shape(file: BinaryIO) -> tuple[int, ...]:
    """From the header at the beginning of a file. Raises OSError."""
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise OSError(f"its header is damaged: {error}") from error
    if dtype != np.uint8:
        raise OSError(f"it is an array of {dtype}, not of uint8")
    return shape
