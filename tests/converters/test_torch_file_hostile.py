"""Checkpoint files that an attacker wrote: refused by name, and nothing in them runs."""

import argparse
import collections
import datetime
import enum
import json
import os
import pathlib
import pickle
import pickletools
import struct

import numpy as np
import pytest

from converters.state_dict import find_state_dict
from converters.torch_files import torch_file
from converters.torch_files.restricted_pickle import Inert
from jaxseg.errors import CheckpointError
from support.torch_pickles import call, every_format, global_, storage, value, view, write_zip


def dumped(obj, protocol):
    """The opcodes that make an object, without the frame around them."""
    code = pickle.dumps(obj, protocol)
    return b"".join(
        code[position:following]
        for opcode, position, following in positions(code)
        if opcode not in ("PROTO", "FRAME", "STOP")
    )


def positions(code):
    """Yields (name of the opcode, where it begins, where the next one begins)."""
    steps = list(pickletools.genops(code))
    ends = [position for _, _, position in steps[1:]] + [len(code)]
    for (opcode, _, position), end in zip(steps, ends, strict=True):
        yield opcode.name, position, end


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


NAMES = (
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval"),
    *("builtins.exec", "__builtin__.eval", "builtins.getattr", "builtins.__import__"),
    *("operator.attrgetter", "functools.partial", "torch.load", "torch.storage._load_from_bytes"),
    *("numpy.load", "numpy.memmap", "pickle.loads", "torch.ComplexFloatStorage"),
    *("torch._utils._rebuild_qtensor", "jaxseg.errors.CheckpointError"),
)


@every_format
@pytest.mark.parametrize("name", NAMES)
def test_foreign_names_become_inert_and_nothing_runs(path, tmp_path, write, name):
    marker = tmp_path / "it ran"
    module, _, attribute = name.rpartition(".")
    command = value(f"touch '{marker}'")
    stack_global = value(module) + value(attribute) + b"\x93"
    for pickled in (call(name, command), stack_global + b"(" + command + b"tR"):
        write(path, pickled)
        found = torch_file.read_torch_file(path)
        assert isinstance(found, Inert)
        assert found.name == name
        with pytest.raises(CheckpointError, match=f"object of the class {name}, not a dict"):
            find_state_dict(found)
    assert not marker.exists()


@every_format
def test_what_python_itself_would_run_does_not_run(path, tmp_path, write):
    marker = tmp_path / "it ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch '{marker}'",)

    write(path, value({"state_dict": Evil()}))
    with pytest.raises(CheckpointError, match=r"no weights, .*object of (posix|nt)\.system"):
        find_state_dict(torch_file.read_torch_file(path))
    assert not marker.exists()


class HistoryBuffer:
    """As mmengine's runner keeps it: with its methods in a dict of its state."""

    def __init__(self):
        self._log_history = np.zeros(3)
        self._statistics_methods = {"mean": HistoryBuffer.mean}

    def mean(self):
        pass


class Level(enum.Enum):
    """As configs have it."""

    HIGH = 1


class Settings(dict):
    """As easydict and addict have it."""


BESIDE = {
    "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
    "args": argparse.Namespace(output=pathlib.PurePosixPath("runs/x"), lr=0.1),
    "settings": Settings(lr=0.1),
    "when": datetime.datetime(2026, 1, 1),
    "level": Level.HIGH,
    "counts": collections.deque([1, 2]),
    "random": np.random.default_rng(0),
}


@pytest.mark.parametrize("key", BESIDE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_beside_the_weights_are_carried_without_life(path, key, protocol):
    weights = call("collections.OrderedDict") + b"(" + value("backbone.w") + view() + b"u"
    kept = dumped(BESIDE[key], protocol) + b"q\xff0"  # put aside
    entries = value("state_dict") + weights + value(key) + b"h\xff"
    write_zip(path, kept + b"}(" + entries + b"u")
    found = find_state_dict(torch_file.read_torch_file(path))
    assert list(found.tensors) == ["backbone.w"]
    assert [entry for entry in found.beside if entry.startswith(key)]


def test_an_object_in_the_place_of_a_tensor_is_noted(path):
    tensors = value("backbone.w") + view() + value("backbone.q") + call("torchao.Quantized")
    write_zip(path, b"}(" + tensors + b"u")
    assert find_state_dict(torch_file.read_torch_file(path)).inert == {
        "backbone.q": "torchao.Quantized"
    }


OBJECT_ARRAY = call("numpy.dtype", value("O8"), value(False), value(True))
FLOAT_DTYPE = call("numpy.dtype", value("f8"), value(False), value(True))
EMPTY_ARRAY = call(
    "numpy.core.multiarray._reconstruct", global_("numpy.ndarray") + value((0,)) + value(b"b")
)
GADGETS = {
    "BUILD of a stand-in": (
        global_("collections.OrderedDict") + value({"call": 1}) + b"b",
        "state",
    ),
    "BUILD of a type": (global_("torch.FloatStorage") + value({"dtype": 1}) + b"b", "state"),
    "BUILD of a tensor": (view() + value((1, (6,), None, False, b"")) + b"b", "state"),
    "BUILD of a storage": (storage() + value({"data": b""}) + b"b", "state"),
    "BUILD of slots": (value([]) + value((None, {"append": 1})) + b"b", "state"),
    "array of objects": (OBJECT_ARRAY, "dtype 'O8'"),
    "structured array": (FLOAT_DTYPE + value((3, "<", None, ("a",), {}, 8, 8, 0)) + b"b", "dtype"),
    "big-endian array": (FLOAT_DTYPE + value((3, ">", None, None, None, 8, 8, 0)) + b"b", "dtype"),
    "array beyond its bytes": (
        EMPTY_ARRAY + b"(" + value(1) + value((9,)) + FLOAT_DTYPE + b"\x89" + value(b"12") + b"tb",
        "damaged",
    ),
    "scalar beyond its bytes": (
        call("numpy.core.multiarray.scalar", FLOAT_DTYPE, value(b"12")),
        "damaged",
    ),
    "INST": (b"(ios\nsystem\n", "opcode INST"),
    "OBJ": (b"(" + global_("torch.Size") + b"o", "opcode OBJ"),
    "EXT1": (b"\x82\x01", "opcode EXT1"),
    "persistent id as text": (b"P0\n", "opcode PERSID"),
    "persistent id of a module": (value(("module", 1, 2, 3)) + b"Q", "persistent id"),
    "persistent id of nothing": (value(5) + b"Q", "persistent id"),
    "call of a string": (value("os.system") + value(()) + b"R", "damaged"),
    "call of a dict": (value({}) + value(()) + b"R", "damaged"),
    "call without a tuple": (global_("torch.Size") + value([1]) + b"R", "damaged"),
    "items of a string": (value("x") + b"(" + value(1) + value(2) + b"u", "damaged"),
    "append to a tuple": (value(()) + value(1) + b"a", "damaged"),
    "deep key": (b"}" + b")" + b"\x85" * 200_000 + b"Ns", "damaged"),
    "text without end": (b"X\xff\xff\xff\x7fabc", "damaged"),
    "bytes without end": (b"\x8e" + b"\xff" * 7 + b"\x7fabc", "damaged"),
    "name with an escape": (b"cos\\q\nsystem\n", "damaged"),
    "rebuilt by something else": (
        call(
            "torch._tensor._rebuild_from_type_v2",
            global_("torch.Size") + global_("torch.Tensor") + value(((1,),)) + value({}),
        ),
        "damaged",
    ),
    "not a storage": (view(it=value({"data": b"0123456789abcdefghijklmn"})), "damaged"),
    "lazy conjugation": (
        call(
            "torch._utils._rebuild_tensor_v2",
            storage() + value(0) + value((6,)) + value((1,)) + b"\x89}" + value({"neg": True}),
        ),
        "metadata",
    ),
}


@every_format
@pytest.mark.parametrize(("pickled", "message"), GADGETS.values(), ids=GADGETS)
def test_gadgets_are_refused(path, write, pickled, message):
    write(path, pickled)
    with pytest.raises(CheckpointError, match=message) as error:
        torch_file.read_torch_file(path)
    assert str(path) in str(error.value)


def test_a_huge_memo_index_takes_no_memory(path):
    write_zip(path, value("x") + b"r\xff\xff\xff\xff" + b"0j\xff\xff\xff\xff")
    assert torch_file.read_torch_file(path) == "x"


def test_attributes_of_a_state_dict_change_nothing(path):
    write_zip(path, call("collections.OrderedDict") + value({"items": 1, "__class__": 2}) + b"b")
    assert torch_file.read_torch_file(path) == {}


VIEWS_OUTSIDE = (
    (0, (2, 3), (3, 2)),
    (1, (2, 3), (3, 1)),
    (-1, (2,), (1,)),
    (5, (2,), (-1,)),
    (0, (7,), (1,)),
    (6, (), ()),
    (0, (2**62, 2), (1, 1)),
    (0, (2,), (2**63,)),
    (2**80, (1,), (1,)),
    (0, (-1,), (1,)),
    (0, (2, 3), (1,)),
    (0, (2.0,), (1,)),
    (0, (1,) * 70, (1,) * 70),
)


@every_format
@pytest.mark.parametrize(("offset", "size", "stride"), VIEWS_OUTSIDE)
def test_views_outside_their_storage_are_refused(path, write, offset, size, stride):
    write(path, view(offset, size, stride))
    with pytest.raises(CheckpointError, match="damaged"):
        torch_file.read_torch_file(path)


@every_format
@pytest.mark.parametrize(
    "it", [storage(count=7), storage("1"), storage(count=-1), storage(kind="torch.DoubleStorage")]
)
def test_storages_other_than_the_file_has_are_refused(path, write, it):
    write(path, view(it=it))
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        torch_file.read_torch_file(path)


HEADERS = {
    "overlap": {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])},
    "gap": {"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [8, 12])},
    "beyond the end": {"a": ("F32", [4], [0, 16])},
    "short of the end": {"a": ("F32", [2], [0, 8])},
    "negative": {"a": ("F32", [3], [-12, 0])},
    "another size": {"a": ("F32", [2], [0, 12])},
    "negative shape": {"a": ("F32", [-3, -1], [0, 12])},
    "unknown dtype": {"a": ("F8_E4M3", [12], [0, 12])},
    "text": {"a": ("F32", "3", [0, 12])},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_safetensors_headers_that_lie_are_refused(path, header):
    keys = ("dtype", "shape", "data_offsets")
    entries = {name: dict(zip(keys, it, strict=True)) for name, it in header.items()}
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(CheckpointError, match="safetensors header"):
        torch_file.read_torch_file(path)


@pytest.mark.parametrize(
    "text", [b"{", b'{"a":1}', b"{" * 100_000, b'{"\xff":1}', b'{"__metadata__":{},"a":{}}']
)
def test_safetensors_headers_that_are_none_are_refused(path, text):
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="safetensors header"):
        torch_file.read_torch_file(path)
