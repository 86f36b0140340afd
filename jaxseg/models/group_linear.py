"""Linear layers before and after DCNv3 that use the channel order of its kernel.

On GPUs and CPUs the channels of one group are adjacent in memory. The TPU kernel reads eight groups
side by side instead. There, the columns of the projection are reordered before the matrix product,
so that the product needs no transpose. If the groups do not fill whole registers, columns of zeros
are added (`pallas_kernels.dcnv3_group_order`). The parameters are the same on every platform.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models.layers import DType, kernel_param
from jaxseg.ops.linear import matmul
from jaxseg.ops.slow_values import name_slow_value
from pallas_kernels import GroupOrder


def to_kernel_order(
    x: Float[Array, "... gk"], groups: int, order: GroupOrder
) -> Float[Array, "... m"]:
    """Reorders channels from group after group to the kernel's order, and adds groups of zeros.

    Args:
      x: the channels of `groups` groups, group after group.
      groups: the number of groups.
      order: the kernel's order.
    """
    if not order.last:
        return x
    x = x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2)
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, order.padded - groups),))
    return x.reshape(*x.shape[:-2], -1)


def from_kernel_order(x: Float[Array, "... m"], order: GroupOrder) -> Float[Array, "... pk"]:
    """Reorders channels from the kernel's order to group after group, for all padded groups.

    The transpose moves no data: it cancels with that of the kernel.

    Args:
      x: the channels of all padded groups, in the kernel's order.
      order: the kernel's order.
    """
    if not order.last:
        return x
    x = x.reshape(*x.shape[:-1], -1, order.padded).swapaxes(-1, -2)
    return x.reshape(*x.shape[:-2], -1)


class ToGroups(nn.Module):
    """A linear layer before DCNv3, whose output holds `features` channels of each padded group.

    Attributes:
      groups: the number of groups before padding.
      order: the order of the groups in the output.
      features: the number of output channels per group.
    """

    groups: int
    order: GroupOrder
    features: int
    kernel_init: nn.initializers.Initializer
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... pk"]:
        width = self.groups * self.features
        kernel = kernel_param(self, self.kernel_init, (x.shape[-1], width))
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        kernel, bias = (to_kernel_order(w, self.groups, self.order) for w in (kernel, bias))
        return from_kernel_order(matmul(x.astype(self.dtype), kernel) + bias, self.order)


class FromGroups(nn.Module):
    """A linear layer after DCNv3, whose input holds the channels of all padded groups.

    Attributes:
      groups: the number of groups before padding.
      order: the order of the groups in the input.
      features: the number of output channels.
    """

    groups: int
    order: GroupOrder
    features: int
    kernel_init: nn.initializers.Initializer
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... pk"]) -> Float[Array, "... d"]:
        width = x.shape[-1] // self.order.padded * self.groups
        kernel = kernel_param(self, self.kernel_init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        # A recomputed block keeps it in this order, in which the gradient of the kernel reads it.
        x = name_slow_value(to_kernel_order(x.astype(self.dtype), self.order.padded, self.order))
        kernel = to_kernel_order(kernel.T, self.groups, self.order).T
        return matmul(x, kernel) + bias
