"""InternImage: a convolutional backbone with deformable convolutions v3 (arXiv:2211.05778)."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import map_over_batch
from jaxseg.models.displacement import sow_range
from jaxseg.models.group_linear import FromGroups, ToGroups
from jaxseg.models.layers import MLP, Conv, DepthwiseConv, DType, LayerNorm
from jaxseg.models.remat import remat_block
from jaxseg.ops.layout import fix_layout
from jaxseg.ops.linear import gelu
from jaxseg.ops.padding import Sizes, clear_padding, sizes_at_stride
from jaxseg.ops.slow_values import name_slow_value
from pallas_kernels import KernelChoice


class DCNv3(nn.Module):
    """Deformable convolution v3, which predicts sampling offsets and weights from its input.

    Offsets and weights come from a depthwise convolution of the *input*, not of the projected
    value. Section 3.1 of the paper describes the layer.

    Attributes:
      groups: the number of groups of channels, each with its own offsets and weights.
      offset_scale: a factor on the predicted offsets.
      kernel_size: the side of the grid of sampling points.
      dw_kernel_size: the side of the depthwise convolution, or None for `kernel_size`.
      center_feature_scale: whether a predicted factor per group blends the sampled value with the
        projected value (InternImage-H).
    """

    groups: int
    offset_scale: float = 1.0
    kernel_size: int = 3
    dw_kernel_size: int | None = None
    center_feature_scale: bool = False
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Sizes | None = None
    ) -> Float[Array, "b h w c"]:
        b, h, w, channels = x.shape
        # Initialization needs only shapes, so it must not compile a kernel.
        kernels = KernelChoice("xla") if self.is_initializing() else self.kernels
        implementation = kernels.implementation
        order = pallas_kernels.dcnv3_group_order(self.groups, w, implementation)
        points, groups = self.kernel_size**2, order.padded
        xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        to_groups = functools.partial(ToGroups, self.groups, order)

        per_group = channels // self.groups
        value = to_groups(per_group, xavier, dtype=self.dtype, name="input_proj")(x)
        value = clear_padding(value, sizes)
        query = DepthwiseConv(
            self.dw_kernel_size or self.kernel_size, dtype=self.dtype, name="dw_conv"
        )(clear_padding(x, sizes))
        query = gelu(LayerNorm(self.dtype, name="dw_norm")(name_slow_value(query)))

        # Sampling coordinates and the softmax stay in float32: at column 500, bfloat16 loses a
        # quarter of a pixel.
        query = query.astype(jnp.float32)
        offset = to_groups(2 * points, zeros, name="offset")(query)
        sow_range(self, self.offset_scale * offset[..., ::2], axes=(2, 3))  # along x, per row
        if pallas_kernels.platform() == "gpu":
            # XLA would merge both products, and copy their results apart and gradients together.
            query = lax.optimization_barrier(query)
        mask = to_groups(points, zeros, name="mask")(query)
        mask = nn.softmax(mask.reshape(b, h, w, groups, points)).reshape(mask.shape)

        sample = functools.partial(
            pallas_kernels.dcnv3,
            kernel_size=self.kernel_size,
            stride=1,
            padding=self.kernel_size // 2,
            dilation=1,
            groups=groups,
            offset_scale=self.offset_scale,
            implementation=implementation,
            deterministic=kernels.deterministic,
        )
        sampled = map_over_batch(sample)(value, offset, mask)
        if self.center_feature_scale:
            scale = to_groups(1, zeros, name="center_feature_scale_proj")
            blend = nn.sigmoid(scale(query)).astype(self.dtype)
            blend = jnp.repeat(blend, per_group, axis=-1)
            sampled = sampled * (1 - blend) + value * blend
        project = FromGroups(self.groups, order, channels, xavier, self.dtype, name="output_proj")
        return project(sampled)


class InternImageLayer(nn.Module):
    """A block of InternImage: DCNv3 and an MLP, each in a residual branch.

    The block has three forms. The norm comes before the operation (T), after it (`post_norm`: S to
    XL), or both (`res_post_norm`: H). Layer scale multiplies the branches of the first two forms.
    Drop path draws separately for every sample and branch.
    """

    groups: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    offset_scale: float = 1.0
    post_norm: bool = False
    res_post_norm: bool = False
    dw_kernel_size: int | None = None
    center_feature_scale: bool = False
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, sizes: Sizes | None = None
    ) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        x = fix_layout(x)
        dcn = DCNv3(
            self.groups,
            offset_scale=self.offset_scale,
            dw_kernel_size=self.dw_kernel_size,
            center_feature_scale=self.center_feature_scale,
            kernels=self.kernels,
            dtype=self.dtype,
            name="dcn",
        )
        mlp = MLP(int(channels * self.mlp_ratio), dtype=self.dtype, name="mlp")
        mixed = functools.partial(dcn, sizes=sizes)
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        for index, operation in ((1, mixed), (2, mlp)):
            norm = LayerNorm(self.dtype, name=f"norm{index}")
            branch = norm(operation(x)) if self.post_norm else operation(norm(x))
            if self.res_post_norm:
                branch = LayerNorm(self.dtype, name=f"res_post_norm{index}")(branch)
            elif self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                branch *= self.param(f"gamma{index}", init, (channels,)).astype(self.dtype)
            x = fix_layout(x + drop_path(branch))
        return x


class Stem(nn.Module):
    """Two strided convolutions that reduce an image to a quarter of its size.

    Attributes:
      channels: the number of output channels.
    """

    channels: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], sizes: Sizes | None = None
    ) -> Float[Array, "b p q c"]:
        x = fix_layout(Conv(self.channels // 2, stride=2, dtype=self.dtype, name="conv1")(images))
        x = clear_padding(gelu(LayerNorm(self.dtype, name="norm1")(x)), sizes_at_stride(sizes, 2))
        x = Conv(self.channels, stride=2, dtype=self.dtype, name="conv2")(fix_layout(x))
        return LayerNorm(self.dtype, name="norm2")(fix_layout(x))


class Downsample(nn.Module):
    """A strided convolution that halves the size and doubles the channels. Odd sizes round up."""

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Sizes | None = None
    ) -> Float[Array, "b p q d"]:
        x = fix_layout(clear_padding(x, sizes))
        x = Conv(2 * x.shape[-1], stride=2, use_bias=False, dtype=self.dtype, name="conv")(x)
        return fix_layout(LayerNorm(self.dtype, name="norm")(fix_layout(x)))


class Stage(nn.Module):
    """A sequence of blocks at one resolution.

    It returns the map for the head, and the map for the next stage (None without `downsample`). The
    sequence ends with a norm, unless its blocks are post-norm and have no center feature scale.

    Attributes:
      drop_path: the drop path rate of every block.
      downsample: whether a next stage follows.
      post_norm_after: the indices of the blocks that are followed by a norm on the trunk.
      layer: further arguments of `InternImageLayer`.
    """

    depth: int
    groups: int
    drop_path: Sequence[float]
    downsample: bool
    post_norm_after: Sequence[int] = ()
    remat: bool = False
    remat_keeps: str = "kernels"
    layer: dict | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool, sizes: Sizes | None = None):
        layer_class = InternImageLayer
        if self.remat:
            layer_class = remat_block(layer_class, self.remat_keeps, static_argnums=(2,))
        options = dict(self.layer or {})
        for i in range(self.depth):
            block = layer_class(
                self.groups,
                drop_path=self.drop_path[i],
                dtype=self.dtype,
                name=f"blocks_{i}",
                **options,
            )
            x = block(x, train, sizes)
            if i in self.post_norm_after:
                k = self.post_norm_after.index(i)
                x = LayerNorm(self.dtype, name=f"post_norms_{k}")(x)
        if not options.get("post_norm") or options.get("center_feature_scale"):
            x = LayerNorm(self.dtype, name="norm")(x)
        if not self.downsample:
            return x, None
        return x, Downsample(dtype=self.dtype, name="downsample")(x, sizes)


class InternImage(nn.Module):
    """The InternImage backbone: four stages at strides 4, 8, 16 and 32, for images of any size.

    Images of several sizes may be padded with zeros to one shape, with `image_sizes` as their
    sizes without padding. The features of each are then those of the image alone.

    Attributes:
      channels: the number of channels of the first stage. It doubles with every stage.
      depths: the number of blocks of every stage.
      groups: the number of groups of DCNv3 in every stage.
      drop_path: the drop path rate of the last block. It grows linearly over all blocks from 0.
      layer_scale: the initial value of the layer scales, or None for no layer scale.
      post_norm: see `InternImageLayer`.
      res_post_norm: see `InternImageLayer`.
      level2_post_norm_after: the blocks of the third stage that are followed by a norm on the trunk
        (InternImage-H).
      remat: whether the blocks recompute their values in the backward pass.
      remat_keeps: the values that they keep nevertheless, a key of `jaxseg.models.remat.KEPT`.
    """

    channels: int
    depths: Sequence[int]
    groups: Sequence[int]
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    offset_scale: float = 1.0
    post_norm: bool = False
    res_post_norm: bool = False
    dw_kernel_size: int | None = None
    center_feature_scale: bool = False
    level2_post_norm_after: Sequence[int] = ()
    remat: bool = False
    remat_keeps: str = "kernels"
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    side_multiple = 1  # sides of images may have any number of pixels
    takes_padding = True

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        image_sizes: Sizes | None = None,
    ) -> list[Float[Array, "b _ _ _"]]:
        last = sum(self.depths) - 1
        drop_path = [self.drop_path * i / max(last, 1) for i in range(last + 1)]
        layer = {
            "mlp_ratio": self.mlp_ratio,
            "layer_scale": self.layer_scale,
            "offset_scale": self.offset_scale,
            "post_norm": self.post_norm,
            "res_post_norm": self.res_post_norm,
            "dw_kernel_size": self.dw_kernel_size,
            "center_feature_scale": self.center_feature_scale,
            "kernels": self.kernels,
        }
        stem = Stem(self.channels, dtype=self.dtype, name="patch_embed")
        x = stem(images.astype(self.dtype), image_sizes)
        features = []
        for i, depth in enumerate(self.depths):
            first = sum(self.depths[:i])
            stage = Stage(
                depth,
                self.groups[i],
                drop_path=drop_path[first : first + depth],
                downsample=i < len(self.depths) - 1,
                post_norm_after=self.level2_post_norm_after if i == 2 else (),
                remat=self.remat,
                remat_keeps=self.remat_keeps,
                layer=layer,
                dtype=self.dtype,
                name=f"levels_{i}",
            )
            feature, x = stage(x, train, sizes_at_stride(image_sizes, 4 * 2**i))
            features.append(feature)
        return features
