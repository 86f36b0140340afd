"""The reader of checkpoint files: what torch wrote, what an attacker wrote, what a download broke.

`torch_files/` holds files that torch wrote and what torch reads in them; where torch is installed,
the same comparisons run against it.
"""

import importlib.util
import io
import itertools
import json
import os
import pathlib
import pickle
import re
import struct
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import psutil
import pytest

from converters import torch_file, torch_writer
from jaxseg.errors import CheckpointError

FILES = pathlib.Path(__file__).parent / "torch_files"
TORCH_FILES = ("zip.pth", "legacy.pth")


def tensors_of(obj, path=()):
    """Every array in nested dicts and lists, by its path."""
    if isinstance(obj, np.ndarray):
        yield "/".join(path), obj
    elif isinstance(obj, dict | list | tuple):
        for key, value in obj.items() if isinstance(obj, dict) else enumerate(obj):
            yield from tensors_of(value, (*path, str(key)))


def expected():
    """What torch read: arrays by path, bfloat16 as float32, and the names of their dtypes."""
    with np.load(FILES / "expected.npz") as file:
        return {n: file[n] for n in file.files if n != "dtypes"}, json.loads(str(file["dtypes"]))


def assert_equal(array, wanted, dtype):
    assert array.dtype.name == dtype
    assert array.shape == wanted.shape
    assert not array.flags.writeable
    np.testing.assert_array_equal(array.astype(wanted.dtype), wanted)


# Files of a few hundred bytes, written here: a pickle, and storages of float32.

SIX = np.arange(6, dtype="f4")
MAGIC = pickle.dumps(torch_file.LEGACY_MAGIC, 2)


def global_(name):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def value(it):
    """A pickle of a plain value, without its first and last opcode."""
    return pickle.dumps(it, 2)[2:-1]


def call(name, *arguments):
    return global_(name) + b"(" + b"".join(arguments) + b"tR"


def storage(key="0", count=6, kind="torch.FloatStorage"):
    return (
        b"(" + value("storage") + global_(kind) + value(key) + value("cpu") + value(count) + b"tQ"
    )


def view(offset=0, size=(2, 3), stride=(3, 1), it=None):
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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


# What torch and safetensors wrote.


@pytest.mark.parametrize("name", TORCH_FILES)
def test_tensors_are_those_that_torch_reads(name):
    wanted, dtypes = expected()
    found = dict(tensors_of(torch_file.read(FILES / name)))
    arrays = {name: it for name, it in found.items() if not name.startswith("numpy/")}
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        assert_equal(array, wanted[name], dtypes[name])


@pytest.mark.parametrize("name", TORCH_FILES)
def test_plain_data_beside_the_tensors_is_itself(name):
    obj = torch_file.read(FILES / name)
    assert obj["meta"] == {
        "epoch": 12,
        "iter": 160000,
        "mmcv_version": "1.5.0",
        "config": "model = dict(type='EncoderDecoder')\n",
        "CLASSES": ("road", "sidewalk", "straße"),
        "PALETTE": [[128, 64, 128], [244, 35, 232], [70, 70, 70]],
    }
    assert obj["args"] == {"lr": 0.1, "device": "cuda:1", "sizes": (2,)}
    assert obj["scheduler"] == {"milestones": {8: 1, 11: 1}}
    assert obj["optimizer"]["param_groups"][0]["params"] == [0, 1]
    assert obj["plain"] == {
        "dtype": np.dtype("float16"),
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "default": {"a": [1]},
        "numbers": [0, -1, 255, 65536, 2**40, -(2**70), 0.5, True, None],
    }
    arrays = obj["numpy"]
    assert (arrays["best"], type(arrays["best"])) == (82.5, np.float64)
    assert (arrays["count"], type(arrays["count"])) == (7, np.int64)
    np.testing.assert_array_equal(arrays["matrix"], np.arange(6.0).reshape(2, 3))
    assert arrays["names"].tolist() == ["a", "bc"]
    assert arrays["none"].shape == (0, 2)


def test_tensors_of_one_storage_share_its_memory():
    tensors = torch_file.read(FILES / "zip.pth")["state_dict"]
    assert np.shares_memory(tensors["shared.whole"], tensors["shared.part"])


def test_safetensors():
    wanted, dtypes = expected()
    found = torch_file.read(FILES / "tensors.safetensors")
    prefix = "state_dict/"
    assert {prefix + name for name in found} == {n for n in wanted if n.startswith(prefix)}
    for name, array in found.items():
        assert_equal(array, wanted[prefix + name], dtypes[prefix + name])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", [*TORCH_FILES, "tensors.safetensors"])
def test_a_zip_around_one_checkpoint(tmp_path, name, method):
    with zipfile.ZipFile(tmp_path / "it.zip", "w", method) as archive:
        archive.writestr("__MACOSX/work_dirs/._model.pth", b"resource fork")
        archive.writestr("work_dirs/.hidden.pth", b"no")
        archive.writestr("work_dirs/README.md", b"a model")
        archive.write(FILES / name, f"work_dirs/{name}.tar" if name.endswith(".pth") else name)
    inside = dict(tensors_of(torch_file.read(tmp_path / "it.zip")))
    alone = dict(tensors_of(torch_file.read(FILES / name)))
    assert inside.keys() == alone.keys()
    for key, array in inside.items():
        np.testing.assert_array_equal(array, alone[key])


def test_a_torch_archive_that_was_compressed_again(tmp_path):
    with (
        zipfile.ZipFile(FILES / "zip.pth") as source,
        zipfile.ZipFile(tmp_path / "it.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    wanted, _ = expected()
    found = torch_file.read(tmp_path / "it.pth")["state_dict"]["float32"]
    np.testing.assert_array_equal(found, wanted["state_dict/float32"])


def test_unpacking_leaves_no_file_and_no_path_of_the_archive(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(FILES / "zip.pth", "../../escaped.pth")
    tensors = torch_file.read(tmp_path / "it.zip")["state_dict"]
    assert tensors["shared.whole"].tolist() == list(range(10))
    assert not list((tmp_path / "temp").iterdir())
    assert not list(tmp_path.rglob("escaped*"))


def test_reading_one_tensor_does_not_read_the_file(path):
    torch_writer.write(path, {name: np.ones(2**24, np.float32) for name in ("first", "second")})
    before = psutil.Process().memory_info().rss
    tensors = torch_file.read(path)["state_dict"]
    assert tensors["first"][:1000].sum() == 1000
    assert psutil.Process().memory_info().rss - before < 8e6
    assert tensors["second"].sum() == 2**24
    assert psutil.Process().memory_info().rss - before > 6e7


def test_views_of_the_legacy_format(path):
    """Old files store a view of a storage as a part of it: (key, offset, count)."""
    part = storage()[:-2] + value(("1", 2, 3)) + b"tQ"
    pickled = view(1, (2,), (1,), part)
    system = pickle.dumps({"little_endian": True}, 2)
    parts = [MAGIC, pickle.dumps(1001, 2), system, b"\x80\x02" + pickled + b"."]
    data = struct.pack("<q", 6) + SIX.tobytes()
    path.write_bytes(b"".join(parts) + pickle.dumps(["0"], 2) + data)
    assert torch_file.read(path).tolist() == [3, 4]


@every_format
def test_old_names_and_python_2(path, write):
    """Files before PyTorch 0.4, and pickles whose strings are bytes."""
    tensor = call("torch._utils._rebuild_tensor", storage(), value(2), value((2,)), value((3,)))
    write(path, b"}(U\x06weight" + tensor + b"U\x04\xc3\xa9\xc3\xa9Nu")
    obj = torch_file.read(path)
    assert obj["weight"].tolist() == [2, 5]


# What an attacker wrote.

NAMES = (
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval"),
    *("builtins.exec", "__builtin__.eval", "builtins.getattr", "builtins.__import__"),
    *("operator.attrgetter", "functools.partial", "torch.load", "torch.storage._load_from_bytes"),
    *("numpy.load", "numpy.memmap", "pickle.loads", "torch.ComplexFloatStorage"),
    *("torch._utils._rebuild_qtensor", "jaxseg.errors.CheckpointError"),
)


@every_format
@pytest.mark.parametrize("name", NAMES)
def test_foreign_names_are_refused_by_name_and_nothing_runs(path, tmp_path, write, name):
    marker = tmp_path / "it ran"
    module, _, attribute = name.rpartition(".")
    command = value(f"touch '{marker}'")
    stack_global = value(module) + value(attribute) + b"\x93"
    for pickled in (call(name, command), global_(name), stack_global + b"(" + command + b"tR"):
        write(path, pickled)
        with pytest.raises(CheckpointError, match=rf"model\.pth.* holds {name}, .*state_dict"):
            torch_file.read(path)
    assert not marker.exists()


@every_format
def test_what_python_itself_would_run_does_not_run(path, tmp_path, write):
    marker = tmp_path / "it ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch '{marker}'",)

    write(path, value({"state_dict": Evil()}))
    with pytest.raises(CheckpointError, match=r"holds (posix|nt)\.system"):
        torch_file.read(path)
    assert not marker.exists()


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
        torch_file.read(path)
    assert str(path) in str(error.value)


def test_a_huge_memo_index_takes_no_memory(path):
    write_zip(path, value("x") + b"r\xff\xff\xff\xff" + b"0j\xff\xff\xff\xff")
    assert torch_file.read(path) == "x"


def test_attributes_of_a_state_dict_change_nothing(path):
    write_zip(path, call("collections.OrderedDict") + value({"items": 1, "__class__": 2}) + b"b")
    assert torch_file.read(path) == {}


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
        torch_file.read(path)


@every_format
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2, 3), (3, 1)),
        (5, (), ()),
        (5, (1,), (99,)),
        (0, (2, 2), (0, 5)),
        (3, (0, 4), (4, 1)),
        (1, (3,), (2,)),
    ],
)
def test_views_inside_are_read(path, write, offset, size, stride):
    write(path, view(offset, size, stride))
    wanted = [
        offset + sum(map(int.__mul__, i, stride)) for i in itertools.product(*map(range, size))
    ]
    assert torch_file.read(path).tolist() == np.reshape(wanted, size).tolist()


@every_format
@pytest.mark.parametrize(
    "it", [storage(count=7), storage("1"), storage(count=-1), storage(kind="torch.DoubleStorage")]
)
def test_storages_other_than_the_file_has_are_refused(path, write, it):
    write(path, view(it=it))
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        torch_file.read(path)


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
        torch_file.read(path)


@pytest.mark.parametrize(
    "text", [b"{", b'{"a":1}', b"{" * 100_000, b'{"\xff":1}', b'{"__metadata__":{},"a":{}}']
)
def test_safetensors_headers_that_are_none_are_refused(path, text):
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="safetensors header"):
        torch_file.read(path)


# What a download broke.


def small_files(folder):
    """One small file of each format."""
    content = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), ml_dtypes.bfloat16)}
    pickled = b"}(" + value("weight") + view() + value("epoch") + value(3) + b"u"
    torch_writer.write(folder / "it.safetensors", content)
    torch_writer.write(folder / "it.pth", content)
    for name, write in WRITERS.items():
        write(folder / f"{name}.pth", pickled)
    return sorted(folder.iterdir())


def test_every_file_cut_short_is_an_error(tmp_path):
    for file in small_files(tmp_path):
        torch_file.read(file)
        for size in reversed(range(file.stat().st_size)):
            os.truncate(file, size)
            with pytest.raises(CheckpointError, match=re.escape(str(file))):
                torch_file.read(file)


def test_every_changed_byte_is_an_error_or_harmless(tmp_path):
    for file in small_files(tmp_path):
        sound = file.read_bytes()
        for place, change in itertools.product(range(len(sound)), (0x01, 0x80, 0xFF)):
            changed = bytearray(sound)
            changed[place] ^= change
            file.write_bytes(changed)
            try:
                obj = torch_file.read(file)
            except CheckpointError:
                continue
            for _, array in tensors_of(obj):
                array.tobytes()


def test_storages_that_end_early_say_so(path):
    write_legacy(path, view())
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(CheckpointError, match="cut short"):
        torch_file.read(path)
    write_zip(path, view(), SIX[:5])
    with pytest.raises(CheckpointError, match="larger than its data"):
        torch_file.read(path)


NOT_CHECKPOINTS = {
    "empty": (b"", "empty"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "page of an error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "web page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "gzip archive"),
    "pickle": (pickle.dumps({"a": [1, 2]}), "plain pickle"),
    "old pickle": (pickle.dumps({"a": [1, 2]}, 0), "no file of PyTorch"),
    "text": (b"hello world, this is text", "no file of PyTorch"),
    "zeros": (bytes(1000), "no file of PyTorch"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "no file of PyTorch"),
    "half a zip": (b"PK\x03\x04" + bytes(100), "cut short"),
}


@pytest.mark.parametrize(("content", "message"), NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named(path, content, message):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{message}"):
        torch_file.read(path)


def test_folders_missing_files_and_tar_archives(tmp_path, path):
    with pytest.raises(CheckpointError, match="a folder"):
        torch_file.read(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.pth: .*No such file"):
        torch_file.read(path)
    with tarfile.open(path, "w") as archive:
        archive.add(FILES / "zip.pth", "zip.pth")
    with pytest.raises(CheckpointError, match="tar archive"):
        torch_file.read(path)


def test_archives_without_or_with_several_checkpoints_are_listed(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", b"")
    with pytest.raises(CheckpointError, match=r"without a checkpoint.*README\.md"):
        torch_file.read(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.pth", b"")
        archive.writestr("deep/b.safetensors", b"")
    with pytest.raises(CheckpointError, match=r"several checkpoints: a\.pth, deep/b\.safetensors"):
        torch_file.read(path)


def test_archives_in_archives_in_archives_are_refused(tmp_path):
    write_zip_in_zip(tmp_path / "0.pth", value({}))
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as archive:
        archive.write(tmp_path / "0.pth", "0.pth")
    with pytest.raises(CheckpointError, match="archive in an archive"):
        torch_file.read(tmp_path / "1.zip")


def test_programs_and_big_endian_files_are_refused(path):
    write_zip(path, value({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        torch_file.read(path)
    write_zip(path, value({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        torch_file.read(path)


if importlib.util.find_spec("torch"):
    import argparse

    import torch
    from torch_files import make

    def assert_same(ours, theirs):
        """What we read is what torch read, all the way down."""
        match theirs:
            case torch.Tensor():
                dtype = str(theirs.dtype).removeprefix("torch.")
                assert_equal(ours, make.as_numpy(theirs.detach()), dtype)
            case argparse.Namespace():
                assert_same(ours, vars(theirs))
            case dict():
                assert list(ours) == list(theirs)
                for key, it in theirs.items():
                    assert_same(ours[key], it)
            case list() | tuple():
                assert len(ours) == len(theirs)
                for one, other in zip(ours, theirs, strict=True):
                    assert_same(one, other)
            case torch.device():
                assert ours == str(theirs)
            case torch.dtype():
                assert ours.name == str(theirs).removeprefix("torch.")
            case np.ndarray():
                np.testing.assert_array_equal(ours, theirs, strict=True)
            case _:
                assert ours == theirs

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_live_everything_that_torch_writes(path, zipped, protocol):
        obj = make.checkpoint()
        if not zipped:
            del obj["state_dict"]["uint16"]  # torch writes it, and cannot read it back
        settings = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
        torch.save(obj, path, **settings)
        assert_same(torch_file.read(path), torch.load(path, weights_only=False))

    @pytest.mark.parametrize("zipped", [True, False])
    def test_live_views_of_every_kind(path, zipped):
        generator = np.random.default_rng(0)
        views = {}
        for number in range(100):
            tensor = torch.arange(720.0).reshape(*generator.permutation([2, 3, 4, 5, 6]))
            tensor = tensor.permute(*generator.permutation(5))
            for axis in range(5):
                start, step = generator.integers(0, tensor.shape[axis]), generator.integers(1, 3)
                places = [slice(None)] * axis + [slice(start, None, step)]
                tensor = tensor[tuple(places)]
            views[str(number)] = tensor
        torch.save(views, path, _use_new_zipfile_serialization=zipped)
        assert_same(torch_file.read(path), torch.load(path))

    def test_live_a_whole_model_is_refused_by_its_class(path):
        torch.save(torch.nn.Linear(2, 2), path)
        with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
            torch_file.read(path)

    def test_live_complex_and_quantised_tensors_are_refused_by_name(path):
        torch.save({"a": torch.ones(2, dtype=torch.complex64)}, path)
        with pytest.raises(CheckpointError, match=r"torch\.ComplexFloatStorage"):
            torch_file.read(path)
        torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, path)
        with pytest.raises(CheckpointError, match=r"torch\.float8_e4m3fn"):
            torch_file.read(path)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_live_a_torchscript_program_is_refused(path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
        with pytest.raises(CheckpointError, match="TorchScript"):
            torch_file.read(path)
