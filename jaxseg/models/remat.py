"""Rematerialization: blocks that keep fewer values and recompute them in the backward pass.

Kept values may also be moved to host memory, from where the backward pass fetches them.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.ops.slow_values import SLOW_VALUE
from pallas_kernels.choice import KERNEL_VALUE

policies = jax.checkpoint_policies
_kernels = policies.save_only_these_names(KERNEL_VALUE, SLOW_VALUE)
# What a block keeps for the backward pass in addition to its input.
KEPT = {
    "nothing": policies.nothing_saveable,
    # What attention and deformable sampling compute, what their kernels read in an order of their
    # own, and the values that `name_slow_value` marks.
    "kernels": _kernels,
    # Also the outputs of linear layers. Norms and activations are recomputed.
    "matmuls": policies.save_from_both_policies(
        _kernels, policies.dots_with_no_batch_dims_saveable
    ),
    # The same outputs in host memory: less device memory than "matmuls", but more traffic.
    "matmuls_on_host": policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def remat_block(
    block: type[nn.Module], keeps: str, static_argnums: Sequence[int] = ()
) -> type[nn.Module]:
    """Returns a block class that keeps only some of its values for the backward pass.

    Args:
      block: the class of the block.
      keeps: the kind of values that are kept, a key of `KEPT`.
      static_argnums: the indices of the block's arguments that are not arrays. Index 0 is the block
        itself.

    Raises:
      ValueError: if `keeps` is not a key of `KEPT`.
    """
    if keeps not in KEPT:
        raise ValueError(f"backbone.remat_keeps={keeps!r}: must be one of {', '.join(KEPT)}")
    return nn.remat(block, static_argnums=tuple(static_argnums), policy=KEPT[keeps])
