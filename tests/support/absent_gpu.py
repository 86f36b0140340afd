"""A GPU that is not here: what programs are lowered for."""

import contextlib

import jax

KIND = "NVIDIA H100 80GB HBM3"


def absent_gpu():
    """A mesh of it, for a with statement; where jax cannot describe one (0.10), it does without."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind=KIND, num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh(
        (1,), ("x",), (jax.sharding.AxisType.Explicit,), abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)
