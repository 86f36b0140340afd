"""Files that PyTorch loads: read back by our reader, and where installed by torch's own."""

import importlib.util
import io
import json
import pickletools
import stat
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from converters.torch_files import torch_file, torch_writer
from jaxseg.errors import CheckpointError, OutputError

SUFFIXES = (".pth", ".safetensors")
every_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def tensors():
    generator = np.random.default_rng(0)
    base = generator.normal(size=(3, 4, 5))
    return {
        "backbone.conv.weight": base.astype(np.float32),
        "backbone.half": base.astype(np.float16),
        "backbone.brain": base.astype(ml_dtypes.bfloat16),
        "backbone.count": np.array(2**40, np.int64),
        "backbone.transposed": base.astype(np.float32).transpose(2, 0, 1),
        "backbone.every_second": base.astype(np.float32)[::2, ::-1, 1],
        "empty": np.zeros((0, 3), np.float32),
        "größe": np.ones(1, np.float32),
    }


def read(path):
    obj = torch_file.read_torch_file(path)
    return obj["state_dict"] if path.suffix == ".pth" else obj


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor, strict=True)


@every_suffix
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"it{suffix}"
    torch_writer.write_torch_file(path, tensors())
    assert_same(read(path), tensors())


@every_suffix
def test_no_tensors_at_all(tmp_path, suffix):
    torch_writer.write_torch_file(tmp_path / f"it{suffix}", {})
    assert read(tmp_path / f"it{suffix}") == {}


def test_pth_has_the_layout_of_mmcv_in_order(tmp_path):
    torch_writer.write_torch_file(tmp_path / "it.pth", tensors())
    obj = torch_file.read_torch_file(tmp_path / "it.pth")
    assert list(obj) == ["meta", "state_dict"]
    assert obj["meta"] == {}
    assert list(obj["state_dict"]) == list(tensors())


def member_starts(path):
    """Of each member, where its bytes begin in the file."""
    content = path.read_bytes()
    for info in zipfile.ZipFile(path).infolist():
        name, extra = struct.unpack_from("<2H", content, info.header_offset + 26)
        yield info.header_offset + 30 + name + extra


@pytest.mark.parametrize("large", [torch_writer.LARGE, 100])
def test_zip_is_sound_uncompressed_and_aligned(tmp_path, monkeypatch, large):
    monkeypatch.setattr(torch_writer, "LARGE", large)  # from where sizes take 64 bits
    path = tmp_path / "it.pth"
    torch_writer.write_torch_file(path, tensors())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        # Stops by itself, and leaves nothing on its stack.
        pickletools.dis(archive.read("archive/data.pkl"), io.StringIO())
    assert all(start % 64 == 0 for start in member_starts(path))
    assert_same(read(path), tensors())


def test_safetensors_is_aligned(tmp_path):
    torch_writer.write_torch_file(tmp_path / "it.safetensors", tensors())
    content = (tmp_path / "it.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    assert end % 64 == 0
    header = json.loads(content[8:end])
    assert header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % tensors()[name].itemsize == 0


@every_suffix
def test_the_same_tensors_give_the_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        torch_writer.write_torch_file(tmp_path / f"{name}{suffix}", tensors())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@every_suffix
def test_writing_copies_one_tensor_at_most(tmp_path, suffix):
    size = 2**22
    many = {str(number): np.ones((2, size // 8), np.float32).T for number in range(10)}
    tracemalloc.start()
    torch_writer.write_torch_file(tmp_path / f"it{suffix}", many)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * size


@every_suffix
def test_a_write_that_fails_leaves_what_was_there(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"it{suffix}"
    torch_writer.write_torch_file(path, tensors())

    def fail(tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch_writer, "_bytes", fail)
    with pytest.raises(OutputError, match="No space left"):
        torch_writer.write_torch_file(path, tensors())
    assert list(tmp_path.iterdir()) == [path]
    assert_same(read(path), tensors())


@every_suffix
def test_files_have_the_usual_permissions(tmp_path, suffix):
    path, usual = tmp_path / f"it{suffix}", tmp_path / "usual"
    usual.touch()
    torch_writer.write_torch_file(path, tensors())
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("name", ["it.bin", "it", "it.pth.tar", "it.npz"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"\.pth or \.safetensors"):
        torch_writer.write_torch_file(tmp_path / name, tensors())


@pytest.mark.parametrize("dtype", ["float64", "int32", ">f4", "bool", "complex64"])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype):
    with pytest.raises(CheckpointError, match=r"head\.bias is"):
        torch_writer.write_torch_file(tmp_path / "it.pth", {"head.bias": np.zeros(2, dtype)})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_made(tmp_path):
    torch_writer.write_torch_file(tmp_path / "none" / "it.pth", tensors())
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["it.pth"]


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        torch_writer.write_torch_file(tmp_path / "file" / "it.pth", tensors())


if importlib.util.find_spec("torch"):
    import torch

    from torch_files import make

    def assert_torch_has(found, wanted):
        assert list(found) == list(wanted)
        for name, tensor in wanted.items():
            assert str(found[name].dtype).removeprefix("torch.") == tensor.dtype.name
            assert tuple(found[name].shape) == tensor.shape
            array = make.as_numpy(found[name])
            np.testing.assert_array_equal(array, tensor.astype(array.dtype))

    @pytest.mark.parametrize("large", [torch_writer.LARGE, 100])
    @pytest.mark.parametrize("mmap", [False, True])
    def test_live_torch_loads_it(tmp_path, monkeypatch, mmap, large):
        monkeypatch.setattr(torch_writer, "LARGE", large)
        torch_writer.write_torch_file(tmp_path / "it.pth", tensors())
        obj = torch.load(tmp_path / "it.pth", weights_only=True, mmap=mmap)
        assert obj["meta"] == {}
        assert_torch_has(obj["state_dict"], tensors())


if importlib.util.find_spec("torch") and importlib.util.find_spec("safetensors"):
    from safetensors.torch import load_file, save_file

    def test_live_safetensors_loads_it(tmp_path):
        torch_writer.write_torch_file(tmp_path / "it.safetensors", tensors())
        found = load_file(tmp_path / "it.safetensors")
        assert_torch_has({name: found[name] for name in tensors()}, tensors())

    def test_live_what_safetensors_writes_is_read(tmp_path):
        content = {name: torch.tensor(it) for name, it in {"a": [1.5, 2], "b": [1, 2]}.items()}
        content["c"] = torch.ones(2, 3, dtype=torch.bfloat16)
        save_file(content, tmp_path / "it.safetensors")
        found = read(tmp_path / "it.safetensors")
        assert_torch_has(content, {name: found[name] for name in content})
