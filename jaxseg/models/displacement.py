"""Measures how far learned offsets spread.

The run time of the deformable kernels on TPU grows with this spread.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

COLLECTION = "displacement"


def sow_range(module: nn.Module, offset: Float[Array, "..."], axes: Sequence[int]) -> None:
    """Stores the range of a layer's offsets in the collection `COLLECTION`.

    The range is the maximum minus the minimum over `axes`, averaged over the other axes. Nothing is
    stored during initialization, or if the collection is not mutable.

    Args:
      module: the layer.
      offset: the offsets, in pixels.
      axes: the axes over which the range is taken.
    """
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        spread = jnp.mean(offset.max(axes) - offset.min(axes))
        module.sow(COLLECTION, "range", jax.lax.stop_gradient(spread))


def mean_range(variables: Mapping[str, Any]) -> Float[Array, ""] | None:
    """Returns the range of the offsets, in pixels, averaged over the layers that stored one.

    Args:
      variables: the collections that a model updated.

    Returns:
      The mean, or None for models without deformable layers.
    """
    ranges = jax.tree.leaves(variables.get(COLLECTION, {}))
    return jnp.mean(jnp.stack(ranges)) if ranges else None
