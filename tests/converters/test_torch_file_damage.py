"""Files that a download broke, and files that are no checkpoints: errors that name them."""

import itertools
import os
import pathlib
import pickle
import re
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest

from converters.torch_files import torch_file, torch_writer
from jaxseg.errors import CheckpointError
from support.torch_pickles import (
    SIX,
    WRITERS,
    tensors_of,
    value,
    view,
    write_legacy,
    write_zip,
    write_zip_in_zip,
)

FILES = pathlib.Path(__file__).parents[1] / "torch_files"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


def small_files(folder):
    """One small file of each format."""
    content = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), ml_dtypes.bfloat16)}
    pickled = b"}(" + value("weight") + view() + value("epoch") + value(3) + b"u"
    torch_writer.write_torch_file(folder / "it.safetensors", content)
    torch_writer.write_torch_file(folder / "it.pth", content)
    for name, write in WRITERS.items():
        write(folder / f"{name}.pth", pickled)
    return sorted(folder.iterdir())


def test_every_file_cut_short_is_an_error(tmp_path):
    for file in small_files(tmp_path):
        torch_file.read_torch_file(file)
        for size in reversed(range(file.stat().st_size)):
            os.truncate(file, size)
            with pytest.raises(CheckpointError, match=re.escape(str(file))):
                torch_file.read_torch_file(file)


def test_every_changed_byte_is_an_error_or_harmless(tmp_path):
    for file in small_files(tmp_path):
        sound = file.read_bytes()
        for place, change in itertools.product(range(len(sound)), (0x01, 0x80, 0xFF)):
            changed = bytearray(sound)
            changed[place] ^= change
            file.write_bytes(changed)
            try:
                obj = torch_file.read_torch_file(file)
            except CheckpointError:
                continue
            for _, array in tensors_of(obj):
                array.tobytes()


def test_storages_that_end_early_say_so(path):
    write_legacy(path, view())
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(CheckpointError, match="cut short"):
        torch_file.read_torch_file(path)
    write_zip(path, view(), SIX[:5])
    with pytest.raises(CheckpointError, match="larger than its data"):
        torch_file.read_torch_file(path)


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
        torch_file.read_torch_file(path)


def test_folders_missing_files_and_tar_archives(tmp_path, path):
    with pytest.raises(CheckpointError, match="a folder"):
        torch_file.read_torch_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.pth: .*No such file"):
        torch_file.read_torch_file(path)
    with tarfile.open(path, "w") as archive:
        archive.add(FILES / "zip.pth", "zip.pth")
    with pytest.raises(CheckpointError, match="tar archive"):
        torch_file.read_torch_file(path)


def test_archives_without_or_with_several_checkpoints_are_listed(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", b"")
    with pytest.raises(CheckpointError, match=r"without a checkpoint.*README\.md"):
        torch_file.read_torch_file(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.pth", b"")
        archive.writestr("deep/b.safetensors", b"")
    with pytest.raises(CheckpointError, match=r"several checkpoints: a\.pth, deep/b\.safetensors"):
        torch_file.read_torch_file(path)


def test_archives_in_archives_in_archives_are_refused(tmp_path):
    write_zip_in_zip(tmp_path / "0.pth", value({}))
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as archive:
        archive.write(tmp_path / "0.pth", "0.pth")
    with pytest.raises(CheckpointError, match="archive in an archive"):
        torch_file.read_torch_file(tmp_path / "1.zip")


def test_programs_and_big_endian_files_are_refused(path):
    write_zip(path, value({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        torch_file.read_torch_file(path)
    write_zip(path, value({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        torch_file.read_torch_file(path)
