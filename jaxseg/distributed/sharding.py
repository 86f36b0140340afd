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
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseg.errors import ConfigError
from jaxseg.parameter_paths import path_of

AXES = ("data", "fsdp")
BATCH_SPEC = P(AXES)
NETWORK_BYTES = 2**28  # of gradients that are summed over the network between slices at once


def make_mesh(config: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The ("data", "fsdp") mesh; one axis may be -1, "all devices that are left".

    Neighbors on "fsdp" are neighbors in the machine. Where the devices lie in several TPU slices,
    "data" runs through one slice after the other, so that only sums over the batch pass the slow
    network between them.

    Raises:
      ConfigError: where the axes do not use the devices exactly, or "fsdp" would span slices.
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
            f" {len(devices)} devices; their product must be that, one of them may be -1"
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
    """How many TPU slices the devices lie in, or nodes of GPUs."""
    return len({getattr(device, "slice_index", 0) for device in devices})


# Of XLA on GPUs: every operation gives the same bits in every run, and none is chosen by its time.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}


def compiler_options(mesh: Mesh, deterministic: bool = False) -> dict[str, int]:
    """For `jax.jit` of what sums over the batch.

    `deterministic`: the same bits in every run on GPUs; elsewhere they always are.

    Several TPU slices: XLA would sum every array over the network by itself, and a small one whole
    from each chip. Put together, a chip sends its part of all of them. Sums of split weights, of
    which each chip has its part, still go one by one.
    """
    devices = list(mesh.devices.flat)
    if devices[0].platform in ("gpu", "cuda"):
        return dict(DETERMINISTIC) if deterministic else {}
    if devices[0].platform != "tpu" or _slices(devices) == 1:
        return {}
    return {"xla_tpu_dcn_all_reduce_combiner_threshold_bytes": NETWORK_BYTES}


def check_batch(batch_size: int, accumulation: int, mesh: Mesh):
    """Refuses a batch that the devices cannot share equally.

    Raises:
      ConfigError: with the sizes that they can.
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


def infer_shardings(shapes: Any, rules: Sequence[tuple[str, str]], mesh: Mesh) -> Any:
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


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """The abstract arrays `shapes` with shardings: one for all, or a tree of them."""
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: leaf.update(sharding=shardings), shapes)
    return jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, shardings)


def constrain_shardings(tree: Any, rules: Sequence[tuple[str, str]]) -> Any:
    """Inside a compiled function: the tree, split over the mesh as `infer` tells."""
    mesh = jax.sharding.get_abstract_mesh()
    return (
        tree
        if mesh.empty
        else jax.lax.with_sharding_constraint(tree, infer_shardings(tree, rules, mesh))
    )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays split over all devices, of which each process gives its `rows_here`."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def local_row_indices(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that lie on the devices of this process, in their order."""
    places = NamedSharding(mesh, BATCH_SPEC).addressable_devices_indices_map((batch_size,))
    return sorted(row for (rows,) in places.values() for row in range(batch_size)[rows])


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split as `put_batch` splits it."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


@jax.custom_vjp
def all_gather_parameter(parameter: jax.Array) -> jax.Array:
    """A parameter as a whole on every device of the mesh.

    Its gradient is left to the partitioner: where it is `split`, devices sum each its own part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return parameter
    # The barrier keeps XLA from sending it in the type that it had before.
    return jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(parameter), P())


all_gather_parameter.defvjp(
    lambda parameter: (all_gather_parameter(parameter), None), lambda _, gradient: (gradient,)
)


def map_over_batch(operator: Callable, num_replicated: int = 0) -> Callable:
    """Runs an operator on every device's share of the batch (the first axis of its arguments).

    The partitioner cannot see that a gather stays within its image, and would collect the whole
    batch on every device. Outside a mesh, or for a batch that it does not divide (initialization),
    the operator runs as it is.

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
