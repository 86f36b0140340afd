"""The reader of checkpoint files: what torch and safetensors wrote.

`torch_files/` holds files that torch wrote and what torch reads in them; where torch is installed,
the same comparisons run against it.
"""

import importlib.util
import itertools
import json
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import psutil
import pytest

from converters.torch_files import torch_file, torch_writer
from jaxseg.errors import CheckpointError
from support.torch_pickles import MAGIC, SIX, call, every_format, storage, tensors_of, value, view

FILES = pathlib.Path(__file__).parents[1] / "torch_files"
TORCH_FILES = ("zip.pth", "legacy.pth")


def expected():
    """What torch read: arrays by path, bfloat16 as float32, and the names of their dtypes."""
    with np.load(FILES / "expected.npz") as file:
        return {n: file[n] for n in file.files if n != "dtypes"}, json.loads(str(file["dtypes"]))


def assert_equal(array, wanted, dtype):
    assert array.dtype.name == dtype
    assert array.shape == wanted.shape
    assert not array.flags.writeable
    np.testing.assert_array_equal(array.astype(wanted.dtype), wanted)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


@pytest.mark.parametrize("name", TORCH_FILES)
def test_tensors_are_those_that_torch_reads(name):
    wanted, dtypes = expected()
    found = dict(tensors_of(torch_file.read_torch_file(FILES / name)))
    arrays = {name: it for name, it in found.items() if not name.startswith("numpy/")}
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        assert_equal(array, wanted[name], dtypes[name])


@pytest.mark.parametrize("name", TORCH_FILES)
def test_plain_data_beside_the_tensors_is_itself(name):
    obj = torch_file.read_torch_file(FILES / name)
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
    tensors = torch_file.read_torch_file(FILES / "zip.pth")["state_dict"]
    assert np.shares_memory(tensors["shared.whole"], tensors["shared.part"])


def test_safetensors():
    wanted, dtypes = expected()
    found = torch_file.read_torch_file(FILES / "tensors.safetensors")
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
    inside = dict(tensors_of(torch_file.read_torch_file(tmp_path / "it.zip")))
    alone = dict(tensors_of(torch_file.read_torch_file(FILES / name)))
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
    found = torch_file.read_torch_file(tmp_path / "it.pth")["state_dict"]["float32"]
    np.testing.assert_array_equal(found, wanted["state_dict/float32"])


def test_unpacking_leaves_no_file_and_no_path_of_the_archive(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(FILES / "zip.pth", "../../escaped.pth")
    tensors = torch_file.read_torch_file(tmp_path / "it.zip")["state_dict"]
    assert tensors["shared.whole"].tolist() == list(range(10))
    assert not list((tmp_path / "temp").iterdir())
    assert not list(tmp_path.rglob("escaped*"))


def test_reading_one_tensor_does_not_read_the_file(path):
    torch_writer.write_torch_file(
        path, {name: np.ones(2**24, np.float32) for name in ("first", "second")}
    )
    before = psutil.Process().memory_info().rss
    tensors = torch_file.read_torch_file(path)["state_dict"]
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
    assert torch_file.read_torch_file(path).tolist() == [3, 4]


@every_format
def test_old_names_and_python_2(path, write):
    """Files before PyTorch 0.4, and pickles whose strings are bytes."""
    tensor = call("torch._utils._rebuild_tensor", storage(), value(2), value((2,)), value((3,)))
    write(path, b"}(U\x06weight" + tensor + b"U\x04\xc3\xa9\xc3\xa9Nu")
    obj = torch_file.read_torch_file(path)
    assert obj["weight"].tolist() == [2, 5]


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
    assert torch_file.read_torch_file(path).tolist() == np.reshape(wanted, size).tolist()


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
        assert_same(torch_file.read_torch_file(path), torch.load(path, weights_only=False))

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
        assert_same(torch_file.read_torch_file(path), torch.load(path))

    def test_live_a_whole_model_is_refused_by_its_class(path):
        torch.save(torch.nn.Linear(2, 2), path)
        with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
            torch_file.read_torch_file(path)

    def test_live_complex_and_quantized_tensors_are_refused_by_name(path):
        torch.save({"a": torch.ones(2, dtype=torch.complex64)}, path)
        with pytest.raises(CheckpointError, match=r"torch\.ComplexFloatStorage"):
            torch_file.read_torch_file(path)
        torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, path)
        with pytest.raises(CheckpointError, match=r"torch\.float8_e4m3fn"):
            torch_file.read_torch_file(path)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_live_a_torchscript_program_is_refused(path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
        with pytest.raises(CheckpointError, match="TorchScript"):
            torch_file.read_torch_file(path)
