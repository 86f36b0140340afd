"""Records what a run was made with: versions, git commit, devices, and a hash of the weights."""

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.atomic_files import write_text

PACKAGES = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_manifest(workdir: str | os.PathLike, facts: Mapping[str, Any]):
    """Writes `run.json`: when, where and with which versions a run was started.

    A resumed run keeps the facts of its first start and appends the new ones to the list "resumed".

    Args:
      workdir: the work directory of the run, made if it does not exist.
      facts: further entries of the file.
    """
    path = pathlib.Path(workdir) / "run.json"
    content = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "git": git_revision(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        **facts,
    }
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        content = begun | {"resumed": [*begun.get("resumed", ()), content]}
    write_text(path, strict_json(content, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision(file: str | os.PathLike = __file__) -> str | None:
    """Returns the commit that `file` belongs to, or None if git does not track it.

    The commit ends in `-dirty` if the tree has changed since.
    """
    directory, name = os.path.split(file)

    def git(*arguments):
        command = ["git", "-C", directory, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie within a repository that is not jaxseg's.
        git("ls-files", "--error-unmatch", name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def device_memory() -> tuple[int, int] | None:
    """Returns the memory of the fullest local device: peak bytes in use, and bytes available.

    It is None where JAX does not report memory, as on CPU.
    """
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    used = [(s["peak_bytes_in_use"], s["bytes_limit"]) for s in known if "bytes_limit" in s]
    return max(used, default=None)


def strict_json(content, indent=None) -> str:
    """Returns content as standard JSON, in which NaN and infinity become null."""

    def plain(value):
        if isinstance(value, Mapping):
            return {str(name): plain(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return json.dumps(plain(content), indent=indent, allow_nan=False, ensure_ascii=False)


def fingerprint(params: Any) -> str:
    """Returns a hash of the weights that does not depend on how they are sharded."""

    def sums(params):
        bits = [jax.lax.bitcast_convert_type(x, jnp.uint32) for x in jax.tree.leaves(params)]
        return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in bits])

    return hashlib.sha256(np.asarray(jax.jit(sums)(params)).tobytes()).hexdigest()
