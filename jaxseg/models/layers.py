"""Layers that several models share: linear layers, convolutions, norms and upsampling.

The last axis of every array holds the channels.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import all_gather_parameter, map_over_batch
from jaxseg.models import lora
from jaxseg.ops.convolution import (
    DIMENSIONS,
    conv3x3,
    conv3x3_of_resized,
    conv3x3_stride2,
    depthwise_conv,
)
from jaxseg.ops.layout import fix_layout, fixes_layouts
from jaxseg.ops.linear import gelu, matmul
from jaxseg.ops.normalization import layer_norm
from jaxseg.ops.padding import Sizes, clear_padding
from jaxseg.ops.resize import resize_bilinear
from jaxseg.ops.slow_values import name_slow_value
from pallas_kernels import KernelChoice

DType = jax.typing.DTypeLike


def torch_uniform(fan_in: int) -> Callable:
    """Returns PyTorch's default initializer of convolutions, uniform in ±1/√fan_in.

    It is used for kernels and biases.

    Args:
      fan_in: the number of inputs that one output sums over.
    """

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def kernel_param(module: nn.Module, init: Callable, shape: Sequence[int]) -> Array:
    """Creates the parameter "kernel" of a layer and returns it in the layer's dtype.

    A product of low rank is added to the kernel if the layer has one (`jaxseg.models.lora`).
    The returned kernel is whole on every device. A kernel that is sharded, as by the rule "fsdp",
    is gathered for the layer and released afterwards. Without the gather, XLA may shard the
    layer's work instead and send activations between devices.

    Args:
      module: the layer, which has a field `dtype`.
      init: the initializer of the kernel.
      shape: the shape of the kernel.
    """
    kernel = module.param("kernel", init, tuple(shape))
    if module.has_variable("params", lora.FIRST):
        kernel += lora.product(*(module.get_variable("params", name) for name in lora.LEAVES))
    return all_gather_parameter(kernel.astype(module.dtype))


def convolve3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], kernels: KernelChoice
) -> Float[Array, "b h w d"]:
    """Computes a 3×3 convolution with stride 1, by a kernel for TPUs if there is one for the map.

    Args:
      x: the maps.
      kernel: the weights.
      kernels: which kernels may run.
    """
    choice = kernels.implementation
    if fixes_layouts() and pallas_kernels.conv3x3_has_kernel(
        x.shape, kernel.shape[-1], x.dtype, choice
    ):
        operator = functools.partial(pallas_kernels.conv3x3, implementation=choice)
        return map_over_batch(operator, num_replicated=1)(x, kernel)
    return conv3x3(x, kernel)


class Linear(nn.Module):
    """A linear layer over the last axis."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.normal(0.02)
    bias_init: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        kernel = kernel_param(self, self.kernel_init, (x.shape[-1], self.features))
        x = matmul(x.astype(self.dtype), kernel)
        if self.use_bias:
            x += self.param("bias", self.bias_init, (self.features,)).astype(self.dtype)
        return x


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    hidden_dim: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        channels = x.shape[-1]
        x = Linear(self.hidden_dim, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        return name_slow_value(Linear(channels, dtype=self.dtype, name="fc2")(x))


class Conv(nn.Module):
    """A convolution with PyTorch's padding (`kernel_size // 2` on every side).

    Attributes:
      features: the number of output channels.
      kernel_init: the initializer of the kernel, or None for `torch_uniform`.
      bias_init: the initializer of the bias, or None for `torch_uniform`.
      kernels: which kernels may run.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable | None = None
    bias_init: Callable | None = None
    dtype: DType = jnp.float32
    kernels: KernelChoice = KernelChoice()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        size, channels = self.kernel_size, x.shape[-1]
        default_init = torch_uniform(size * size * channels)
        shape = (size, size, channels, self.features)
        kernel = kernel_param(self, self.kernel_init or default_init, shape)
        x = x.astype(self.dtype)
        if size == 1 and self.stride == 1:
            x = matmul(x, kernel[0, 0])
        elif size == 3 and self.stride == 1:
            x = convolve3x3(x, kernel, self.kernels)
        elif size == 3 and self.stride == 2:
            x = conv3x3_stride2(x, kernel)
        else:
            margin = (size // 2, size // 2)
            x = lax.conv_general_dilated(
                x, kernel, (self.stride,) * 2, (margin, margin), dimension_numbers=DIMENSIONS
            )
        if self.use_bias:
            bias_init = self.bias_init or default_init
            x += self.param("bias", bias_init, (self.features,)).astype(self.dtype)
        return x


class DepthwiseConv(nn.Module):
    """A depthwise convolution with stride 1, "same" zero padding and a bias."""

    kernel_size: int = 3
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        size, channels = self.kernel_size, x.shape[-1]
        init = torch_uniform(size * size)
        kernel = kernel_param(self, init, (size, size, 1, channels))
        bias = self.param("bias", init, (channels,)).astype(self.dtype)
        return depthwise_conv(x.astype(self.dtype), kernel) + bias


class BatchNorm(nn.Module):
    """Batch normalization in float32 with PyTorch's running statistics.

    It normalizes with the biased variance and stores the unbiased one (n / (n-1)). The momentum is
    0.1 and epsilon is 1e-5. Inside a jitted function the batch is the global batch, whatever its
    sharding. The layer is therefore the synchronized batch norm of the reference.

    Raises:
      ValueError: if a training batch has a single value per channel, as in PyTorch.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train:
            count = x.size // channels
            if count == 1 and not self.is_initializing():
                raise ValueError(
                    f"{'/'.join(self.scope.path)}: batch norm over a single value per channel"
                    f" (shape {x.shape}); train with a batch of two or more"
                )
            wide = x.astype(jnp.float32)
            mean = wide.mean((0, 1, 2))
            var = jnp.square(wide - mean).mean((0, 1, 2))
            if not self.is_initializing():
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                unbiased = var * (count / (count - 1))
                running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        scale = scale * lax.rsqrt(var + 1e-5)
        # A single multiply-add in float32, whatever the dtype of the activations.
        return (x.astype(jnp.float32) * scale + (bias - mean * scale)).astype(x.dtype)


class ConcatConv(nn.Module):
    """A bias-free convolution over maps that are resized to the first one's size and concatenated.

    The result is that of a convolution of the concatenated maps. The concatenation is never formed:
    each map is convolved with its part of the kernel, and the results are summed.
    """

    features: int
    kernel_size: int
    kernel_init: Callable
    dtype: DType = jnp.float32
    kernels: KernelChoice = KernelChoice()

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ _"]], sizes: Sequence[Sizes | None]
    ) -> Float[Array, "b p q d"]:
        size, widths = self.kernel_size, [x.shape[-1] for x in maps]
        shape = (size, size, sum(widths), self.features)
        kernel = kernel_param(self, self.kernel_init, shape)
        first, *others = jnp.split(kernel, np.cumsum(widths)[:-1], axis=2)
        hw = maps[0].shape[1:3]
        maps = [x.astype(self.dtype) for x in maps]
        resized = list(zip(maps[1:], others, sizes[1:], strict=True))
        if size == 1:
            parts = [resize_bilinear(matmul(x, k[0, 0]), hw, n, sizes[0]) for x, k, n in resized]
            return sum(parts, matmul(maps[0], first[0, 0]))
        parts = [conv3x3_of_resized(x, k, hw, n, sizes[0]) for x, k, n in resized]
        return sum(parts, convolve3x3(clear_padding(maps[0], sizes[0]), first, self.kernels))


class ConvBNReLU(nn.Module):
    """A convolution without bias, batch norm and ReLU: the building block of the heads.

    The input is one map, or several maps. Several maps are resized to the size of the first one and
    concatenated. `sizes` holds the size of each without padding, or None if it has none.
    """

    features: int
    kernel_size: int = 3
    dtype: DType = jnp.float32
    kernels: KernelChoice = KernelChoice()

    def setup(self):
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.conv = ConcatConv(
            self.features, self.kernel_size, fan_out, dtype=self.dtype, kernels=self.kernels
        )
        self.bn = BatchNorm()

    def __call__(
        self,
        *maps: Float[Array, "b _ _ _"],
        train: bool,
        sizes: Sequence[Sizes | None] | None = None,
    ) -> Float[Array, "b h w d"]:
        maps = [fix_layout(x, channels=self.kernel_size > 1) for x in maps]
        x = fix_layout(self.conv(maps, sizes or [None] * len(maps)), channels=True)
        return nn.relu(self.bn(x, train))


class Classifier(nn.Module):
    """The last layer of a head: channel dropout and a 1×1 convolution to `num_classes` logits.

    `UPerHead`, `FCNHead` and `SegformerHead` end with it.
    """

    num_classes: int
    dropout: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w k"]:
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
        kernel_shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = kernel_param(self, nn.initializers.normal(0.01), kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return matmul(x, kernel[0, 0]) + bias.astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, with its statistics in float32."""

    dtype: DType = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.epsilon, self.dtype)


def drop_path(rate: float, train: bool) -> nn.Dropout:
    """Returns a layer that drops a residual branch [b, n, c] of randomly chosen samples.

    The branches of the other samples are scaled up so that the expected value stays the same.

    Args:
      rate: the probability that a sample's branch is dropped.
      train: whether branches are dropped at all.
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)


def max_pool3x3_stride2(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Takes the maximum over 3×3 cells with stride 2 and padding of 1, of maps without values < 0.

    Padding with zeros is then the same as padding with the least value. It becomes an operation of
    its own, which a TPU would copy the map for. In ONNX, only flax's pooling without padding has a
    form that runs.
    """
    margin = (1, 1)
    if fixes_layouts():
        return nn.max_pool(x, (3, 3), (2, 2), (margin, margin))
    x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


class Upsample(nn.Module):
    """A transposed 2 × 2 convolution with stride 2, which turns every cell into four."""

    kernel_init: Callable = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    bias_init: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        b, h, w, channels = x.shape
        kernel = kernel_param(self, self.kernel_init, (2, 2, channels, channels))  # y, x, out, in
        bias = self.param("bias", self.bias_init, (channels,))
        flat = kernel.reshape(4 * channels, channels).T
        cells = matmul(x.astype(self.dtype), flat).reshape(b, h, w, 2, 2, channels)
        return cells.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, channels) + bias.astype(self.dtype)
