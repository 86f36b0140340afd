"""A TPU that is not here: what programs are traced for."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh


def absent_tpu():
    """A mesh of one chip, for a with statement."""
    device = AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1,), ("data",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)
