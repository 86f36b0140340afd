"""Writes tensors to a file that PyTorch loads: torch's zip archive, or safetensors.

Tensors are written one by one. In addition to the tensors themselves, memory holds a copy of at
most one of them.
"""

import json
import math
import os
import struct
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from jaxseg.errors import CheckpointError, OutputError

# dtype -> (torch's storage type, the name in safetensors).
DTYPES = {
    np.dtype("<f4"): ("FloatStorage", "F32"),
    np.dtype("<f2"): ("HalfStorage", "F16"),
    np.dtype(ml_dtypes.bfloat16): ("BFloat16Storage", "BF16"),
    np.dtype("<i8"): ("LongStorage", "I64"),
}
ALIGNMENT = 64  # bytes; as in torch's own files, so that they can be loaded through a mapping
FOLDER = "archive/"
ZIP_HEADER = 30  # bytes of a member's header, before its name
ZIP64_FIELD = 20  # bytes that zipfile adds to the header of a member of 2 GB or more
LARGE = 2**31 - 2**28  # below zipfile's own limit


Plain = str | int | tuple["Plain", ...]


def write_torch_file(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    meta: Mapping[str, Plain] = types.MappingProxyType({}),
) -> None:
    """Writes tensors of float32, float16, bfloat16 or int64 to a `.pth` or `.safetensors` file.

    A `.pth` holds {"meta": meta, "state_dict": OrderedDict of the tensors}, the layout that mmcv
    reads. `torch.load` reads it with weights_only=True and mmap=True. A `.safetensors` has no place
    for `meta`. The file appears under its name only when it is complete, and then replaces an
    existing one.

    Args:
      path: a file name that ends with .pth or .safetensors. Its folder is made if it is missing.
      tensors: the tensors, by name.
      meta: plain data about the tensors.

    Raises:
      CheckpointError: if the file name has another suffix, or a tensor has another dtype.
      OutputError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise CheckpointError(f"{path}: name a file that ends with {' or '.join(WRITERS)}.")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            known = ", ".join(dtype.name for dtype in DTYPES)
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; convert it to {known}.")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(unfinished, "wb") as file:
                WRITERS[path.suffix](file, tensors, meta)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}. Free some space, or choose another"
            " folder."
        ) from error


def _bytes(tensor: np.ndarray) -> memoryview:
    """Returns a tensor's bytes in the order of its axes, without a copy where possible."""
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray], meta: Mapping) -> None:
    # The format allows no gaps between tensors. With wide elements first, each tensor starts at a
    # multiple of its element size.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in order:
        tensor = tensors[name]
        end = begin + tensor.nbytes
        _, dtype = DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        file.write(_bytes(tensors[name]))


def _write_zip(file: BinaryIO, tensors: Mapping[str, np.ndarray], meta: Mapping) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, file, "data.pkl", b"".join(_pickle(tensors, meta)))
        _add(archive, file, "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            _add(archive, file, f"data/{key}", _bytes(tensor))
        _add(archive, file, "version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes | memoryview) -> None:
    """Adds a member to the archive in `file`, whose bytes start at a multiple of the alignment."""
    info = zipfile.ZipInfo(FOLDER + name)
    info.file_size = len(data)
    large = len(data) > LARGE
    start = file.tell() + ZIP_HEADER + len(info.filename) + 4 + large * ZIP64_FIELD
    padding = -start % ALIGNMENT
    # This extra field is only padding; it is named "FB" as in torch's files.
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as member:
        member.write(data)


def _pickle(tensors: Mapping[str, np.ndarray], meta: Mapping[str, Plain]) -> Iterator[bytes]:
    """Yields a pickle of protocol 2, opcode by opcode.

    Python's pickler would import what the pickle names.
    """
    yield b"\x80\x02}("  # PROTO 2, EMPTY_DICT, MARK
    yield _text("meta") + b"}("
    yield from (_text(key) + _plain(value) for key, value in meta.items())
    yield b"u"  # SETITEMS
    yield _text("state_dict") + ORDERED_DICT + b"("
    for key, (name, tensor) in enumerate(tensors.items()):
        storage, _ = DTYPES[tensor.dtype]
        strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim))
        yield _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n"
        yield b"(("  # the arguments; the first is a persistent id
        yield _text("storage") + f"ctorch\n{storage}\n".encode() + _text(str(key)) + _text("cpu")
        yield _integer(tensor.size) + b"tQ"  # TUPLE, BINPERSID
        yield _integer(0) + _plain(tensor.shape) + _plain(strides)
        yield b"\x89" + ORDERED_DICT  # requires no gradient, has no hooks
        yield b"tR"  # TUPLE, REDUCE
    yield b"uu."  # SETITEMS of both dicts, STOP


ORDERED_DICT = b"ccollections\nOrderedDict\n)R"  # GLOBAL, EMPTY_TUPLE, REDUCE


def _plain(value: Plain) -> bytes:
    match value:
        case str():
            return _text(value)
        case int():
            return _integer(value)
    return b"(" + b"".join(map(_plain, value)) + b"t"  # MARK, TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


WRITERS: dict[str, Callable[[BinaryIO, Mapping[str, np.ndarray], Mapping], None]] = {
    ".pth": _write_zip,
    ".safetensors": _write_safetensors,
}
