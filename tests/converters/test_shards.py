"""Checkpoints in several files: read by their index, and refused where one is missing."""

import json

import numpy as np
import pytest

from converters.torch_files.torch_file import read_torch_file
from converters.torch_files.torch_writer import write_torch_file
from jaxseg.errors import CheckpointError

TENSORS = {name: np.full((2, 3), number, np.float32) for number, name in enumerate("abc")}
FIRST, LAST = (f"model-{number:05}-of-00002.safetensors" for number in (1, 2))
FILES = {"a": FIRST, "b": FIRST, "c": LAST}


@pytest.fixture
def index(tmp_path):
    for file in set(FILES.values()):
        part = {name: TENSORS[name] for name in TENSORS if FILES[name] == file}
        write_torch_file(tmp_path / file, part, {})
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": FILES}))
    return path


def test_an_index_or_its_folder_gives_the_tensors_of_all_files(index):
    for given in (index, index.parent):
        found = read_torch_file(given)
        assert found.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(found[name], tensor, strict=True)


def test_one_of_the_files_is_refused_with_the_name_of_the_index(index):
    with pytest.raises(CheckpointError, match=rf"one of several files.*{index.name}"):
        read_torch_file(index.parent / FIRST)


def test_a_file_or_a_tensor_that_is_missing_is_named(index):
    (index.parent / LAST).unlink()
    with pytest.raises(CheckpointError, match=rf"the file {LAST} is missing"):
        read_torch_file(index)
    write_torch_file(index.parent / LAST, {"other": TENSORS["c"]}, {})
    with pytest.raises(CheckpointError, match=r"(?s)1 tensors are missing:.*c in model-00002"):
        read_torch_file(index)


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../../etc/passwd"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": [1]}',
        "[" * 100_000,
    ],
)
def test_an_index_that_names_no_files_beside_it_is_refused(index, content):
    index.write_text(content)
    with pytest.raises(CheckpointError, match="no index of shards"):
        read_torch_file(index)
