"""InternImage: a convolutional backbone on deformable convolutions v3 (arXiv:2211.05778)."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

import pallas_kernels
from jaxseg.distributed.sharding import map_over_batch
from jaxseg.models.displacement import sow_range
from jaxseg.models.group_linear import FromGroups, ToGroups, padded
from jaxseg.models.layers import MLP, Conv, DepthwiseConv, DType, layer_norm
from jaxseg.models.remat import remat_block
from jaxseg.ops.linear import gelu
from pallas_kernels import KernelChoice


class DCNv3(nn.Module):
    """Deformable convolution v3: sampling offsets and weights predicted from the input itself.

    Offsets and weights come from a depthwise convolution of the *input*, not of the projected
    value. With `center_feature_scale` (InternImage-H) the sampled value and the plain one are
    blended by a predicted factor per group. Section 3.1 of the paper.
    """

    groups: int
    offset_scale: float = 1.0
    kernel_size: int = 3
    dw_kernel_size: int | None = None
    center_feature_scale: bool = False
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, channels = x.shape
        # Initialization needs shapes alone, for which no kernel is to be compiled.
        kernels = KernelChoice("xla") if self.is_initializing() else self.kernels
        implementation = kernels.implementation
        points, groups = self.kernel_size**2, padded(self.groups, implementation)
        xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        to_groups = functools.partial(ToGroups, self.groups, implementation=implementation)

        per_group = channels // self.groups
        value = to_groups(per_group, xavier, dtype=self.dtype, name="input_proj")(x)
        query = DepthwiseConv(
            self.dw_kernel_size or self.kernel_size, dtype=self.dtype, name="dw_conv"
        )(x)
        query = gelu(layer_norm("dw_norm", self.dtype)(query))

        # Sampling coordinates and the softmax stay in float32: a quarter of a pixel at column 500
        # is lost in bfloat16.
        query = query.astype(jnp.float32)
        offset = to_groups(2 * points, zeros, name="offset")(query)
        sow_range(self, self.offset_scale * offset[..., ::2], axes=(2, 3))  # along x, by rows
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
        project = FromGroups(
            self.groups, channels, xavier, implementation, self.dtype, name="output_proj"
        )
        return project(sampled)


class InternImageLayer(nn.Module):
    """One block: DCNv3 and MLP, each in a residual branch.

    Three forms: norm before the operation (T), after it (`post_norm`: S to XL), or both
    (`res_post_norm`: H). Layer scale multiplies the branches of the first two. Drop path draws per
    sample and branch.
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
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
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
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        for index, operation in ((1, dcn), (2, mlp)):
            norm = layer_norm(f"norm{index}", self.dtype)
            branch = norm(operation(x)) if self.post_norm else operation(norm(x))
            if self.res_post_norm:
                branch = layer_norm(f"res_post_norm{index}", self.dtype)(branch)
            elif self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                branch *= self.param(f"gamma{index}", init, (channels,)).astype(self.dtype)
            x += drop_path(branch)
        return x


class Stem(nn.Module):
    """Two strided convolutions: the image at a quarter of its size, `channels` wide."""

    channels: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b p q c"]:
        x = Conv(self.channels // 2, stride=2, dtype=self.dtype, name="conv1")(images)
        x = gelu(layer_norm("norm1", self.dtype)(x))
        x = Conv(self.channels, stride=2, dtype=self.dtype, name="conv2")(x)
        return layer_norm("norm2", self.dtype)(x)


class Downsample(nn.Module):
    """Half the size, twice the channels. Odd sizes round up."""

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        x = Conv(2 * x.shape[-1], stride=2, use_bias=False, dtype=self.dtype, name="conv")(x)
        return layer_norm("norm", self.dtype)(x)


class Stage(nn.Module):
    """A run of blocks at one resolution; returns what the head sees and what the next stage sees.

    The closing norm exists unless the stage is post-norm (or the center feature scale is on).
    """

    depth: int
    groups: int
    drop_path: Sequence[float]
    downsample: bool
    post_norm_after: Sequence[int] = ()
    remat: bool = False
    remat_keeps: str = "nothing"
    layer: dict | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool):
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
            x = block(x, train)
            if i in self.post_norm_after:
                k = self.post_norm_after.index(i)
                x = layer_norm(f"post_norms_{k}", self.dtype)(x)
        if not options.get("post_norm") or options.get("center_feature_scale"):
            x = layer_norm("norm", self.dtype)(x)
        return x, Downsample(dtype=self.dtype, name="downsample")(x) if self.downsample else None


class InternImage(nn.Module):
    """The backbone: four stages at strides 4, 8, 16 and 32; any image size.

    `level2_post_norm_after` lists blocks of the third stage that are followed by a norm on the
    trunk (InternImage-H). Drop path grows linearly over all blocks, from 0 to `drop_path`.
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
    remat_keeps: str = "nothing"
    kernels: KernelChoice = KernelChoice()
    dtype: DType = jnp.float32

    side_multiple = 1  # sides of images may be any number of pixels

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], train: bool = False
    ) -> list[Float[Array, "b p q c"]]:
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
        x = Stem(self.channels, dtype=self.dtype, name="patch_embed")(images.astype(self.dtype))
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
            feature, x = stage(x, train)
            features.append(feature)
        return features
