"""Linear layers into and out of the groups of DCNv3, in the order that its kernel reads.

On GPUs and CPUs a group's channels lie side by side in memory. The kernel for TPUs wants eight
groups side by side instead, so there the columns of the projection are put in that order before the
matrix product, and the product need not be transposed; where groups are missing to the next eight,
columns of zeros take their place. Parameters are the same everywhere.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.models.layers import DType, kernel_param
from jaxseg.ops.linear import matmul


def padded(groups: int, implementation: str | None) -> int:
    """The groups that there are once some of zeros have been added.

    implementation: of DCNv3, as `pallas_kernels.dcnv3` takes it.
    """
    multiple = pallas_kernels.dcnv3_group_multiple(implementation)
    return -(-groups // multiple) * multiple


def to_kernel_order(
    x: Float[Array, "... g*k"], groups: int, implementation: str | None
) -> Float[Array, "... m"]:
    """From channels by groups to the kernel's order, with the groups of zeros added."""
    if pallas_kernels.dcnv3_group_multiple(implementation) == 1:
        return x
    missing = padded(groups, implementation) - groups
    x = x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2)
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),))
    return x.reshape(*x.shape[:-2], -1)


def from_kernel_order(
    x: Float[Array, "... m"], groups: int, implementation: str | None
) -> Float[Array, "... p*k"]:
    """Back to channels by groups, of all `padded(groups)`; a transpose in name only."""
    if pallas_kernels.dcnv3_group_multiple(implementation) == 1:
        return x
    x = x.reshape(*x.shape[:-1], -1, padded(groups, implementation)).swapaxes(-1, -2)
    return x.reshape(*x.shape[:-2], -1)


class ToGroups(nn.Module):
    """A linear layer with `features` for each group; gives those of all padded groups."""

    groups: int
    features: int
    kernel_init: nn.initializers.Initializer
    implementation: str | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... p*k"]:
        width = self.groups * self.features
        kernel = kernel_param(self, self.kernel_init, (x.shape[-1], width))
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        layout = (self.groups, self.implementation)
        kernel, bias = (to_kernel_order(w, *layout) for w in (kernel, bias))
        return from_kernel_order(matmul(x.astype(self.dtype), kernel) + bias, *layout)


class FromGroups(nn.Module):
    """A linear layer on the channels of all padded groups."""

    groups: int
    features: int
    kernel_init: nn.initializers.Initializer
    implementation: str | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... p*k"]) -> Float[Array, "... d"]:
        groups = padded(self.groups, self.implementation)
        width = x.shape[-1] // groups * self.groups
        kernel = kernel_param(self, self.kernel_init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = to_kernel_order(x.astype(self.dtype), groups, self.implementation)
        kernel = to_kernel_order(kernel.T, self.groups, self.implementation).T
        return matmul(x, kernel) + bias
