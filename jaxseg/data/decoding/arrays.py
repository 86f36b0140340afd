"""Stores decoded pictures as uint8 arrays in the format of `.npy` files."""

import io

import numpy as np

MAGIC = np.lib.format.MAGIC_PREFIX


def begins(file: io.BufferedIOBase) -> bool:
    """Returns whether an open file holds a stored array.

    The file must be at its beginning, and is there again afterwards.
    """
    beginning = file.read(len(MAGIC))
    file.seek(0)
    return beginning == MAGIC


def to_bytes(array: np.ndarray) -> bytes:
    """Returns the content of a file that stores an array."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def from_bytes(content: bytes) -> np.ndarray:
    """Returns the array in a file's content, read-only, since it is not copied.

    Raises:
      OSError: if the content is damaged. Decoders of pictures raise the same.
    """
    file = io.BytesIO(content)
    shape = read_shape(file)
    values = np.frombuffer(content, np.uint8, offset=file.tell())
    if values.size != np.prod(shape):
        raise OSError(f"it holds {values.size} values, but its header gives the shape {shape}")
    return values.reshape(shape)


def read_shape(file: io.BufferedIOBase) -> tuple[int, ...]:
    """Reads the shape of a stored array from the header at the beginning of a file.

    Raises:
      OSError: if the header is damaged, or if the array is not of uint8.
    """
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise OSError(f"its header is damaged: {error}") from error
    if dtype != np.uint8:
        raise OSError(f"it is an array of {dtype}, not of uint8")
    return shape
