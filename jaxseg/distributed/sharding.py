"""Places arrays on devices: the mesh, sharding rules over paths, and operators per device.

The mesh has two axes. The batch is sharded over both. Parameters and optimizer state are sharded
over "fsdp" and replicated over "data". The rules are `config.sharding`, by default those of
`jaxseg/recipes/base.py`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from jaxseg.errors import ConfigError
from jaxseg.parameter_paths import path_of

AXES = ("data", "fsdp")
BATCH_SPEC = P(AXES)
NETWORK_BYTES = 2**28  # of gradients in one all-reduce between slices


def make_mesh(config: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the ("data", "fsdp") device mesh.

    Neighbors on "fsdp" are neighbors in the machine. With several TPU slices, "data" runs through
    one slice after the other. Only all-reduces over the batch then cross the slow network between
    the slices.

    Args:
      config: the size of each axis; one of them may be -1, meaning all remaining devices.
      devices: the devices to use; all devices of JAX by default.

    Raises:
      ConfigError: if the axes do not use the devices exactly, or "fsdp" would span slices.
    """
    devices = list(devices or jax.devices())
    sizes = [config[axis] for axis in AXES]
    given = math.prod(size for size in sizes if size > 0)
    if sizes.count(-1) == 1 and len(devices) % given == 0:
        sizes[sizes.index(-1)] = len(devices) // given
    data, fsdp = sizes
    if data * fsdp != len(devices) or min(sizes) < 1:
        raise ConfigError(
            f"config.mesh data={config['data']} fsdp={config['fsdp']} does not fit"
            f" {len(devices)} devices; their product must be that number, and one of them may be -1"
        )
    slices = _slices(devices)
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    if data % slices:
        raise ConfigError(
            f"config.mesh fsdp={fsdp} does not fit into one of {slices} slices of"
            f" {len(devices) // slices} devices"
        )
    within, across = (data // slices, fsdp), (slices, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), AXES, types)


def _slices(devices):
    """Returns the number of TPU slices, or of GPU nodes, that the devices lie in."""
    return len({getattr(device, "slice_index", 0) for device in devices})


# XLA options for GPUs: every operation gives the same bits in every run, and no implementation is
# chosen by timing it.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}


def compiler_options(mesh: Mesh, deterministic: bool = False) -> dict[str, int]:
    """Returns compiler options for a jitted function with all-reduces over the batch.

    With several TPU slices, XLA issues one cross-slice all-reduce per array and does not shard
    small ones. Raising the combiner's threshold merges them, so each chip sends only its shard.
    All-reduces of FSDP-sharded weights are not merged.

    Args:
      mesh: the devices that the function runs on.
      deterministic: whether GPUs give the same bits in every run. Other devices always do.
    """
    devices = list(mesh.devices.flat)
    if devices[0].platform in ("gpu", "cuda"):
        return dict(DETERMINISTIC) if deterministic else {}
    if devices[0].platform != "tpu" or _slices(devices) == 1:
        return {}
    return {"xla_tpu_dcn_all_reduce_combiner_threshold_bytes": NETWORK_BYTES}


def check_batch(batch_size: int, accumulation: int, mesh: Mesh):
    """Checks that the batch divides evenly over devices and accumulation steps.

    Raises:
      ConfigError: if it does not, with the sizes that fit, or if fewer than two images are computed
        at a time.
    """
    parts = mesh.size * accumulation
    if batch_size < 1 or batch_size % parts:
        raise ConfigError(
            f"config.batch_size={batch_size} cannot be split over {mesh.size} devices"
            f" x config.optim.accumulation={accumulation}; choose a multiple of {parts}"
        )
    if batch_size // accumulation < 2:
        raise ConfigError(
            "batch norm needs two images or more at a time:"
            f" config.batch_size={batch_size} / config.optim.accumulation is below that"
        )


def infer_shardings(
    shapes: Any, rules: Sequence[tuple[str, str]], mesh: Mesh | AbstractMesh
) -> Any:
    """Returns a sharding for every leaf of a tree, by rules over the leaves' paths.

    The first rule whose pattern is found in the path applies. "fsdp" shards the largest axis that
    the size of the mesh axis "fsdp" divides, and replicates a tensor without such an axis.
    "replicated" replicates the tensor.

    Args:
      shapes: a tree of arrays or abstract arrays.
      rules: (regular expression, "fsdp" or "replicated") pairs.
      mesh: the device mesh.

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


def replicated_like(array: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding that has a whole array on each device that holds a part of another.

    Args:
      array: an array, or its shape with a sharding; without one, the result is None.
    """
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, P())
    return sharding


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Adds shardings to a tree of abstract arrays.

    Args:
      shapes: the abstract arrays.
      shardings: one sharding for all of them, or a tree of shardings.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: leaf.update(sharding=shardings), shapes)
    return jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, shardings)


def constrain_shardings(tree: Any, rules: Sequence[tuple[str, str]]) -> Any:
    """Constrains a tree inside a jitted function to the shardings of `infer_shardings`.

    Outside a mesh it returns the tree unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return (
        tree
        if mesh.empty
        else jax.lax.with_sharding_constraint(tree, infer_shardings(tree, rules, mesh))
    )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, sharded over all devices, from the rows of every process.

    Args:
      batch: the rows of this process (`local_row_indices`), by name.
      mesh: the device mesh.
    """
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def local_row_indices(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of a batch that lie on the devices of this process, in ascending order."""
    places = NamedSharding(mesh, BATCH_SPEC).addressable_devices_indices_map((batch_size,))
    return sorted(row for (rows,) in places.values() for row in range(batch_size)[rows])


def local_rows(array: jax.Array) -> np.ndarray:
    """Returns this process's rows of an array that is sharded as by `put_batch`."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


@jax.custom_vjp
def all_gather_parameter(parameter: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Gathers a sharded parameter so that every device of the mesh has all of it.

    The partitioner chooses the sharding of the gradient. If `constrain_shardings` shards it, each
    device sums only its own shard.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return parameter
    # Without the barrier, XLA gathers the parameter in the dtype that it had before its cast.
    return jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(parameter), P())


all_gather_parameter.defvjp(
    lambda parameter: (all_gather_parameter(parameter), None), lambda _, gradient: (gradient,)
)


def map_over_batch(operator: Callable, num_replicated: int = 0) -> Callable:
    """Wraps an operator so that every device runs it on its own shard of the batch.

    The partitioner cannot see that a gather stays within its image, and would collect the whole
    batch on every device. The operator runs unchanged outside a mesh, and for a batch that the
    mesh does not divide (initialization).

    Args:
      operator: takes arrays whose first axis is the batch, and returns arrays of this kind.
      num_replicated: how many of the last arguments are parameters, the same on all devices. Their
        gradients are summed where the operator takes them, not somewhere within it.
    """

    def run(*arguments):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or arguments[0].shape[0] % mesh.size:
            return operator(*arguments)
        given = (BATCH_SPEC,) * (len(arguments) - num_replicated) + (P(),) * num_replicated
        return jax.shard_map(
            operator, mesh=mesh, in_specs=given, out_specs=BATCH_SPEC, check_vma=False
        )(*arguments)

    return run
