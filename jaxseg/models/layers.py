"""The layers that several models share: convolutions, batch norm, resizing. Channels last."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxseg.distributed.sharding import all_gather_parameter
from jaxseg.ops.resize import along_height, along_width, interpolation_matrix, resize_bilinear

DType = jnp.dtype
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def torch_uniform(fan_in: int) -> Callable:
    """PyTorch's default for convolutions and their biases: uniform in ±1/√fan_in."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _margin(x: Array, size: int) -> Array:
    margin = (size // 2, size // 2)
    return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


@jax.custom_vjp
def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """A 3×3 convolution, stride 1, zero padding 1."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def _conv3x3_forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(residuals, cotangent):
    x, kernel = residuals
    x_gradient = conv3x3(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))

    def by_matmul(x, cotangent):
        # XLA:CPU's own weight gradient is three times slower than nine matrix products.
        _, height, width, channels = x.shape
        padded = _margin(x, 3)
        taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        flat = cotangent.reshape(-1, cotangent.shape[-1])
        return jnp.stack([tap.reshape(-1, channels).T @ flat for tap in taps]).reshape(kernel.shape)

    def by_convolution(x, cotangent):
        _, transpose = jax.vjp(
            lambda k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=DIMENSIONS),
            kernel,
        )
        return transpose(cotangent)[0]

    kernel_gradient = lax.platform_dependent(x, cotangent, cpu=by_matmul, default=by_convolution)
    return x_gradient, kernel_gradient


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


@jax.custom_vjp
def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]
) -> Float[Array, "b h w c"]:
    """A depthwise convolution, stride 1, "same" zero padding, as k² shifted multiply-adds.

    XLA fuses them into one pass; its grouped convolution is 15-20 times slower on CPU.
    """
    size = kernel.shape[0]
    _, height, width, _ = x.shape
    padded = _margin(x, size)
    taps = [(i, j) for i in range(size) for j in range(size)]
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j] for i, j in taps)


def _depthwise_forward(x, kernel):
    return depthwise_conv(x, kernel), (x, kernel)


def _depthwise_backward(residuals, cotangent):
    x, kernel = residuals
    size = kernel.shape[0]
    padded = _margin(x, size)

    def tap_gradient(tap):
        shifted = lax.dynamic_slice(padded, (0, tap // size, tap % size, 0), x.shape)
        return jnp.sum(shifted.astype(jnp.float32) * cotangent.astype(jnp.float32), (1, 2))

    # One tap after the other: half the time of all of them at once on CPU, and quick to compile.
    # The sum over images comes after: it is what devices have to communicate for.
    kernel_gradient = lax.map(tap_gradient, jnp.arange(size * size)).sum(1)
    x_gradient = depthwise_conv(cotangent, kernel[::-1, ::-1])
    return x_gradient, kernel_gradient.reshape(kernel.shape).astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def conv3x3_of_resized(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], hw: Sequence[int]
) -> Float[Array, "b H W d"]:
    """conv3x3(resize_bilinear(x, hw), kernel), without ever holding the large map.

    Both are linear, so the channels can be mixed first, at the small size, once for each of the
    nine taps; the results are then resized and shifted, one axis at a time. For a map a quarter as
    large that is a third of the multiplications, for smaller ones still less.
    """
    _, h, w, _ = x.shape
    taps = jnp.einsum("bhwc,ijcd->bhwijd", x, kernel)
    columns = jnp.asarray(_shifted_interpolation(w, hw[1]), x.dtype)
    rows = jnp.asarray(_shifted_interpolation(h, hw[0]), x.dtype)
    precision = lax.Precision.HIGHEST
    wide = jnp.einsum("Wjw,bhwijd->bhiWd", columns, taps, precision=precision)
    return jnp.einsum("Hih,bhiWd->bHWd", rows, wide, precision=precision)


def _shifted_interpolation(size: int, out_size: int) -> np.ndarray:
    """[out_size, 3, size]: linear interpolation at each place and its two neighbours, else zero."""
    matrix = np.pad(interpolation_matrix(size, out_size), ((1, 1), (0, 0)))
    return np.stack([matrix[j : j + out_size] for j in range(3)], axis=1)


@jax.custom_vjp
def matmul(x: Float[Array, "... c"], kernel: Float[Array, "c d"]) -> Float[Array, "... d"]:
    """x @ kernel, whose gradients take their operands as they lie in memory.

    Left to itself, XLA:CPU fuses what comes before a weight gradient with the transposition that
    the gradient needs, and walks through all of it against the grain: half the time of a backward
    pass.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(residuals, cotangent):
    x, kernel = residuals
    x, cotangent = lax.platform_dependent(
        *(x, cotangent),
        cpu=lambda *pair: lax.optimization_barrier(pair),
        default=lambda *pair: pair,
    )
    rows, columns = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    return cotangent @ kernel.T, rows.T @ columns


matmul.defvjp(_matmul_forward, _matmul_backward)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU. By erf, which is four times faster on CPU than the erfc that jax.nn takes."""
    return 0.5 * x * (1 + lax.erf(x * np.asarray(0.5**0.5, x.dtype)))


def kernel_of(module: nn.Module, init: Callable, shape: Sequence[int]) -> Array:
    """The parameter "kernel" of a layer, in the layer's type.

    Whole on every device: where it is split, as "fsdp" does, it is gathered for the layer, and let
    go of again. Left to itself, XLA may split the layer's work instead, and sends activations.
    """
    return all_gather_parameter(module.param("kernel", init, tuple(shape)).astype(module.dtype))


class Linear(nn.Module):
    """A linear layer over the last axis."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.normal(0.02)
    bias_init: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        kernel = kernel_of(self, self.kernel_init, (x.shape[-1], self.features))
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
        return Linear(channels, dtype=self.dtype, name="fc2")(x)


class Conv(nn.Module):
    """A convolution with PyTorch's padding (`kernel_size // 2` on every side)."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable | None = None
    bias_init: Callable | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        size, channels = self.kernel_size, x.shape[-1]
        default_init = torch_uniform(size * size * channels)
        shape = (size, size, channels, self.features)
        kernel = kernel_of(self, self.kernel_init or default_init, shape)
        x = x.astype(self.dtype)
        if size == 1 and self.stride == 1:
            x = matmul(x, kernel[0, 0])
        elif size == 3 and self.stride == 1:
            x = conv3x3(x, kernel)
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
    """A depthwise convolution with bias."""

    kernel_size: int = 3
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        size, channels = self.kernel_size, x.shape[-1]
        init = torch_uniform(size * size)
        kernel = kernel_of(self, init, (size, size, 1, channels))
        bias = self.param("bias", init, (channels,)).astype(self.dtype)
        return depthwise_conv(x.astype(self.dtype), kernel) + bias


class BatchNorm(nn.Module):
    """Batch normalisation in float32, with PyTorch's running statistics.

    Normalises with the biased variance and keeps the unbiased one (n / (n-1)), momentum 0.1,
    epsilon 1e-5. Inside a jitted function the batch is the global one, whatever its sharding, which
    makes this the synchronised batch norm of the reference.

    Raises:
      ValueError: in training, for a batch of one value a channel, as PyTorch does.
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
                    f"{'/'.join(self.scope.path)}: batch norm over a single value a channel"
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
        # One multiply-add, in float32, whatever the type of the activations.
        return (x.astype(jnp.float32) * scale + (bias - mean * scale)).astype(x.dtype)


class ConcatConv(nn.Module):
    """A convolution, without bias, of maps resized to the first one's size and concatenated."""

    features: int
    kernel_size: int
    kernel_init: Callable
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b h w c"]]) -> Float[Array, "b p q d"]:
        size, widths = self.kernel_size, [x.shape[-1] for x in maps]
        shape = (size, size, sum(widths), self.features)
        kernel = kernel_of(self, self.kernel_init, shape)
        first, *others = jnp.split(kernel, np.cumsum(widths)[:-1], axis=2)
        hw = maps[0].shape[1:3]
        maps = [x.astype(self.dtype) for x in maps]
        if size == 1:
            parts = [
                resize_bilinear(matmul(x, k[0, 0]), hw)
                for x, k in zip(maps[1:], others, strict=True)
            ]
            return sum(parts, matmul(maps[0], first[0, 0]))
        parts = [conv3x3_of_resized(x, k, hw) for x, k in zip(maps[1:], others, strict=True)]
        return sum(parts, conv3x3(maps[0], first))


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU: the building block of the heads.

    Of one map; or of several, resized to the first one's size and concatenated.
    """

    features: int
    kernel_size: int = 3
    dtype: DType = jnp.float32

    def setup(self):
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.conv = ConcatConv(
            self.features, self.kernel_size, kernel_init=fan_out, dtype=self.dtype
        )
        self.bn = BatchNorm()

    def __call__(self, *maps: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
        return nn.relu(self.bn(self.conv(maps), train))


class Classifier(nn.Module):
    """What ends every head: channel dropout and a 1×1 convolution to `num_classes` scores."""

    num_classes: int
    dropout: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w k"]:
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
        kernel_shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = kernel_of(self, nn.initializers.normal(0.01), kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return matmul(x, kernel[0, 0]) + bias.astype(self.dtype)


def layer_norm(
    name: str | None = None, dtype: DType = jnp.float32, epsilon: float = 1e-6
) -> nn.LayerNorm:
    """Layer norm as the backbones use it, statistics in float32."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def drop_path(rate: float, train: bool) -> nn.Dropout:
    """Drops a residual branch of whole samples, [b, n, c]; kept ones grow to make up for it."""
    return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)


def adaptive_avg_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b s s c"]:
    """Average pooling into size × size bins, which overlap or repeat on a smaller map.

    Bin i of n covers floor(i·size/n) to ceil((i+1)·size/n), as in PyTorch.
    """

    def bins(length):
        matrix = np.zeros((size, length))
        for i in range(size):
            start, stop = i * length // size, -((i + 1) * length // -size)
            matrix[i, start:stop] = 1 / (stop - start)
        return matrix

    return along_width(bins(x.shape[2]), along_height(bins(x.shape[1]), x))
