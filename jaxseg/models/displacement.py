"""How far learnt offsets spread: the time of the deformable kernels on TPU grows with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

COLLECTION = "displacement"


def sow_range(module: nn.Module, offset: Float[Array, "..."], axes: Sequence[int]):
    """Keeps the range of a layer's offsets, in pixels, over some axes; the mean of the others."""
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        spread = jnp.mean(offset.max(axes) - offset.min(axes))
        module.sow(COLLECTION, "range", jax.lax.stop_gradient(spread))


def mean_range(variables: Mapping[str, Any]) -> Float[Array, ""] | None:
    """Over the layers that kept one; None for models without deformable layers."""
    ranges = jax.tree.leaves(variables.get(COLLECTION, {}))
    return jnp.mean(jnp.stack(ranges)) if ranges else None
