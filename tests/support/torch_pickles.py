"""Checkpoint files of a few hundred bytes, byte by byte: pickles, and the formats around them."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from converters.torch_files import torch_file

SIX = np.arange(6, dtype="f4")
MAGIC = pickle.dumps(torch_file.LEGACY_MAGIC, 2)


def global_(name):
    """A pickle of a name, for which Python's own reader would import its module."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def value(it):
    """A pickle of a plain value, without its first and last opcode."""
    return pickle.dumps(it, 2)[2:-1]


def call(name, *arguments):
    """A pickle of the call of a name; the arguments are pickles."""
    return global_(name) + b"(" + b"".join(arguments) + b"tR"


def storage(key="0", count=6, kind="torch.FloatStorage"):
    """A pickle of what stands for a storage, whose bytes lie elsewhere in the file."""
    return (
        b"(" + value("storage") + global_(kind) + value(key) + value("cpu") + value(count) + b"tQ"
    )


def view(offset=0, size=(2, 3), stride=(3, 1), it=None):
    """A pickle of a tensor: by default 2 × 3 numbers of the storage "0"."""
    numbers = value(offset) + value(size) + value(stride)
    it = storage() if it is None else it
    return call("torch._utils._rebuild_tensor_v2", it + numbers + b"\x89}")


def write_zip(path, pickled, data=SIX):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("archive/data/0", data.tobytes())


def write_legacy(path, pickled, data=SIX):
    # In the legacy format a persistent id has a sixth part, the storage view: here none.
    pickled = pickled.replace(b"tQ", b"NtQ")
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [MAGIC, pickle.dumps(1001, 2), pickle.dumps(system, 2), b"\x80\x02" + pickled + b"."]
    storages = pickle.dumps(["0"] if b"Q" in pickled else [], 2)
    tail = struct.pack("<q", data.size) + data.tobytes() if b"Q" in pickled else b""
    path.write_bytes(b"".join(head) + storages + tail)


def write_zip_in_zip(path, pickled):
    inner = io.BytesIO()
    write_zip(inner, pickled)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("work_dirs/model.pth.tar", inner.getvalue())


WRITERS = {"zip": write_zip, "legacy": write_legacy, "zip in zip": write_zip_in_zip}
every_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def tensors_of(obj, path=()):
    """Every array in nested dicts and lists, by its path."""
    if isinstance(obj, np.ndarray):
        yield "/".join(path), obj
    elif isinstance(obj, dict | list | tuple):
        for key, value in obj.items() if isinstance(obj, dict) else enumerate(obj):
            yield from tensors_of(value, (*path, str(key)))
