"""Linear layers before and after DCNv3 that use the channel order of its kernel.

On GPUs and CPUs the channels of one group are adjacent in memory. The TPU kernel reads eight groups
side by side instead. There, the columns of the projection are reordered before the matrix product,
so that the product needs no transpose. If the number of groups is not a multiple of eight, columns
of zeros are added. The parameters are the same on every platform.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.models.layers import DType, kernel_param
from jaxseg.ops.linear import matmul


def padded(groups: int, implementation: str | None) -> int:
    """Returns the number of groups after padding with groups of zeros.

    Args:
      groups: the number of groups of the layer.
      implementation: the implementation of DCNv3, as `pallas_kernels.dcnv3` takes it.
    """
    multiple = pallas_kernels.dcnv3_group_multiple(implementation)
    return -(-groups // multiple) * multiple


def to_kernel_order(
    x: Float[Array, "... gk"], groups: int, implementation: str | None
) -> Float[Array, "... m"]:
    """Reorders channels from group after group to the kernel's order, and adds groups of zeros.

    Args:
      x: the channels of `groups` groups, group after group.
      groups: the number of groups.
      implementation: the implementation of DCNv3, as `pallas_kernels.dcnv3` takes it.
    """
    if pallas_kernels.dcnv3_group_multiple(implementation) == 1:
        return x
    missing = padded(groups, implementation) - groups
    x = x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2)
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),))
    return x.reshape(*x.shape[:-2], -1)


def from_kernel_order(
    x: Float[Array, "... m"], groups: int, implementation: str | None
) -> Float[Array, "... pk"]:
    """Reorders channels from the kernel's order to group after group, for all padded groups.

    The transpose moves no data: it cancels with that of the kernel.

    Args:
      x: the channels of `padded(groups)` groups, in the kernel's order.
      groups: the number of groups before padding.
      implementation: the implementation of DCNv3, as `pallas_kernels.dcnv3` takes it.
    """
    if pallas_kernels.dcnv3_group_multiple(implementation) == 1:
        return x
    x = x.reshape(*x.shape[:-1], -1, padded(groups, implementation)).swapaxes(-1, -2)
    return x.reshape(*x.shape[:-2], -1)


class ToGroups(nn.Module):
    """A linear layer before DCNv3, whose output holds `features` channels of each padded group.

    Attributes:
      groups: the number of groups before padding.
      features: the number of output channels per group.
      implementation: the implementation of DCNv3, as `pallas_kernels.dcnv3` takes it.
    """

    groups: int
    features: int
    kernel_init: nn.initializers.Initializer
    implementation: str | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... pk"]:
        width = self.groups * self.features
        kernel = kernel_param(self, self.kernel_init, (x.shape[-1], width))
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        layout = (self.groups, self.implementation)
        kernel, bias = (to_kernel_order(w, *layout) for w in (kernel, bias))
        return from_kernel_order(matmul(x.astype(self.dtype), kernel) + bias, *layout)


class FromGroups(nn.Module):
    """A linear layer after DCNv3, whose input holds the channels of all padded groups.

    Attributes:
      groups: the number of groups before padding.
      features: the number of output channels.
      implementation: the implementation of DCNv3, as `pallas_kernels.dcnv3` takes it.
    """

    groups: int
    features: int
    kernel_init: nn.initializers.Initializer
    implementation: str | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... pk"]) -> Float[Array, "... d"]:
        groups = padded(self.groups, self.implementation)
        width = x.shape[-1] // groups * self.groups
        kernel = kernel_param(self, self.kernel_init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = to_kernel_order(x.astype(self.dtype), groups, self.implementation)
        kernel = to_kernel_order(kernel.T, self.groups, self.implementation).T
        return matmul(x, kernel) + bias
