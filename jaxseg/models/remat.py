"""Blocks that keep less for the backward pass, and compute or fetch it again there."""

from collections.abc import Sequence

import jax
from flax import linen as nn

policies = jax.checkpoint_policies
# What a block keeps besides its input.
KEPT = {
    "nothing": policies.nothing_saveable,
    # What linear layers put out: attention, norms and sampling are computed again.
    "matmuls": policies.dots_with_no_batch_dims_saveable,
    # The same in the memory of the host: less on the device than by "matmuls", more traffic.
    "matmuls_on_host": policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def remat_block(
    block: type[nn.Module], keeps: str, static_argnums: Sequence[int] = ()
) -> type[nn.Module]:
    """A block whose values within are not kept, but for those named by `keeps`, a key of `KEPT`.

    static_argnums: arguments of the block, itself being 0, that are no arrays.

    Raises:
      ValueError: for what cannot be kept.
    """
    if keeps not in KEPT:
        raise ValueError(f"backbone.remat_keeps={keeps!r}; it can be {', '.join(KEPT)}")
    return nn.remat(block, static_argnums=tuple(static_argnums), policy=KEPT[keeps])
