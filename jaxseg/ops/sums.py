"""Sums over the cells of feature maps, for gradients of weights."""

from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import platform


def sum_over_cells(x: Float[Array, "b h w ..."]) -> Float[Array, "b ..."]:
    """Sums over rows and columns.

    On a GPU, the sum over columns waits for that over rows. Where XLA sums over both at once, it
    first writes small maps to memory, in place of reading what they are computed from.
    """
    if platform() == "gpu":
        return lax.optimization_barrier(x.sum(1)).sum(1)
    return x.sum((1, 2))
