"""Strict settings for every test: eight CPU devices, no silent promotion of types."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAXSEG_TEST_PLATFORM", "cpu")
# Most of a test's time is compilation, and most of that is LLVM's optimisation.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_dtype_promotion", "strict")
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def standard_promotion():
    """For tests that run an optimizer: optax raises Python floats to integer counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield
