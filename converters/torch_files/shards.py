"""Reads a checkpoint that lies in several files, named by an index.

The index is a JSON file, such as `model.safetensors.index.json`. Its "weight_map" holds the file of
each tensor. The files lie beside the index.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from jaxseg.errors import CheckpointError, first_few

SUFFIX = ".index.json"
MOST_BYTES = 1 << 28  # of an index
SHARD = re.compile(r"-\d+-of-\d+\.\w+$")


def index_beside(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the only index in a folder, or beside a file that is one of several; else None."""
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and not SHARD.search(path.name):
        return None
    found = sorted(folder.glob(f"*{SUFFIX}"))
    return found[0] if len(found) == 1 else None


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that a checkpoint lies in: `path`, or an index and the files it names.

    Args:
      path: a file, an index, or the folder of an index.

    Raises:
      CheckpointError: if the index cannot be used.
    """
    index = path if path.name.endswith(SUFFIX) else index_beside(path)
    if index is None:
        return [path]
    return [index, *(index.parent / name for name in sorted(set(_read_index(index).values())))]


def read_shards(
    index: pathlib.Path, read: Callable[[pathlib.Path], object]
) -> dict[str, np.ndarray]:
    """Returns the tensors of all files that an index names.

    Args:
      index: the index.
      read: returns the content of one file.

    Raises:
      CheckpointError: if the index cannot be used, or a file or a tensor is missing.
    """
    files = _read_index(index)
    contents: dict[str, Mapping] = {}
    for name in sorted(set(files.values())):
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"{index}: the file {name} is missing beside it. Download all files of the index."
            )
        content = read(index.parent / name)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{index.parent / name}: it holds no dict of tensors.")
        contents[name] = content
    missing = [tensor for tensor, name in files.items() if tensor not in contents[name]]
    if missing:
        lines = first_few([f"{tensor} in {files[tensor]}" for tensor in missing])
        raise CheckpointError(f"{index}: {len(missing)} tensors are missing:{lines}")
    return {tensor: contents[name][tensor] for tensor, name in files.items()}


def _read_index(index: pathlib.Path) -> dict[str, str]:
    """Returns the file name of each tensor."""
    try:
        if index.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        files = json.loads(index.read_bytes())["weight_map"]
        if not files or any(
            not isinstance(name, str) or not name or pathlib.PurePath(name).name != name
            for name in files.values()
        ):
            raise ValueError("its weight_map does not name files beside it")
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be opened: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: no index of shards ({type(error).__name__}: {error}). Download it again."
        ) from error
    return files
