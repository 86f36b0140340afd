"""Names values that take long to compute for their size, for blocks that are recomputed."""

import jax
from jax.ad_checkpoint import checkpoint_name

SLOW_VALUE = "slow_value"


def name_slow_value(value: jax.Array) -> jax.Array:
    """Names a value, so that a block keeps it that recomputes its values in the backward pass.

    `jaxseg.models.remat` decides which blocks do.
    """
    return checkpoint_name(value, SLOW_VALUE)
