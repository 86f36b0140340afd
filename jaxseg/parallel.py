"""Where arrays live: the device mesh, sharding rules over paths, and operators per device.

The mesh has two axes. The batch is split over both; parameters and optimizer state are split over
"fsdp" and repeated over "data".
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseg.errors import ConfigError
from jaxseg.paths import path_of

AXES = ("data", "fsdp")
BATCH = P(AXES)


def make_mesh(config: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The ("data", "fsdp") mesh; one axis may be -1, "all devices that are left".

    Raises:
      ConfigError: where the axes do not use the devices exactly.
    """
    devices = devices or jax.devices()
    sizes = [config[axis] for axis in AXES]
    given = math.prod(size for size in sizes if size > 0)
    if sizes.count(-1) == 1 and len(devices) % given == 0:
        sizes[sizes.index(-1)] = len(devices) // given
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        raise ConfigError(
            f"config.mesh data={config['data']} fsdp={config['fsdp']} does not fit"
            f" {len(devices)} devices; their product must be that, one of them may be -1"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def infer(shapes: Any, rules: Sequence[tuple[str, str]], mesh: Mesh) -> Any:
    """A sharding for every leaf, by the first rule whose pattern is found in its path.

    "fsdp" splits the largest axis that the mesh axis divides (and replicates a tensor that has
    none); "replicated" repeats it.

    Raises:
      ConfigError: for a path that no rule covers, or an unknown kind of sharding.
    """

    def sharding(key_path, leaf):
        path = path_of(key_path)
        kind = next((kind for pattern, kind in rules if re.search(pattern, path)), None)
        if kind not in ("fsdp", "replicated"):
            raise ConfigError(f"config.sharding: {kind!r} for {path}; use 'fsdp' or 'replicated'")
        size = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if kind == "replicated" or size == 1 or not axes:
            return NamedSharding(mesh, P())
        axis = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays split over all devices, of which each process gives its `rows_here`."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def rows_here(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that lie on the devices of this process, in their order."""
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    return sorted(row for (rows,) in places.values() for row in range(batch_size)[rows])


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split as `put_batch` splits it."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def over_batch(operator: Callable) -> Callable:
    """Runs an operator on every device's share of the batch (the first axis of all arguments).

    The partitioner cannot see that a gather stays within its image, and would collect the whole
    batch on every device. Outside a mesh, or for a batch that it does not divide (initialisation),
    the operator runs as it is.
    """

    def run(*arguments):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or arguments[0].shape[0] % mesh.size:
            return operator(*arguments)
        return jax.shard_map(operator, mesh=mesh, in_specs=BATCH, out_specs=BATCH, check_vma=False)(
            *arguments
        )

    return run
