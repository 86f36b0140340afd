"""Sizes at which the published models call the operators, for benchmarks and compile tests.

Every call follows from a model and the size of its input. `INPUTS` lists the training crops of the
published recipes and the largest input of their evaluation. That input is the window, or the whole
image at the test scale.
"""

from collections.abc import Iterator
from typing import NamedTuple

HW = tuple[int, int]


class DCNv3(NamedTuple):
    """Describes a DCNv3 call for one image, with 3 × 3 points and stride 1."""

    height: int
    width: int
    groups: int
    group_channels: int


class MSDeformAttn(NamedTuple):
    """Describes a call of multi-scale deformable attention for one image."""

    queries: int
    levels: tuple[HW, ...]
    heads: int
    head_channels: int
    points: int = 4


class SelfAttention(NamedTuple):
    """Describes a call of self-attention for one image.

    With a grid, there is a bias of relative positions, and the tokens are a class token and the
    patches of the grid.
    """

    tokens: int
    heads: int
    head_channels: int
    grid: HW | None = None


class Conv3x3(NamedTuple):
    """Describes a 3 × 3 convolution of one image."""

    height: int
    width: int
    channels: int
    features: int


Call = DCNv3 | MSDeformAttn | SelfAttention

# InternImage size -> groups of the first stage (they double at every later stage) and channels per
# group.
INTERNIMAGE = {
    "t": (4, 16),
    "s": (5, 16),
    "b": (7, 16),
    "l": (10, 16),
    "xl": (12, 16),
    "h": (10, 32),
    "g": (16, 32),
}
# ViT-Adapter size -> heads and channels per head.
VIT_ADAPTER = {"t": (6, 32), "s": (6, 64), "b": (12, 32), "l": (16, 32)}
VIT = {"t": (3, 64), "s": (6, 64), "b": (12, 64), "l": (16, 64)}  # the same, for ViT and BEiT
# Channels of Mask2Former's pixel decoder -> heads and channels per head.
PIXEL_DECODER = {256: (8, 32), 1024: (32, 32)}

CITYSCAPES, ADE20K = ((512, 1024), (1024, 2048)), ((512, 512), (512, 2048))
ADE20K_LARGE = ((640, 640), (640, 2560))
INPUTS: dict[str, tuple[HW, ...]] = {
    "internimage_t": CITYSCAPES + ADE20K,
    "internimage_s": CITYSCAPES + ADE20K,
    "internimage_b": CITYSCAPES + ADE20K,
    "internimage_l": CITYSCAPES + ADE20K_LARGE,
    "internimage_xl": CITYSCAPES + ADE20K_LARGE,
    "internimage_h": ((480, 480), (512, 512), (896, 896), (1024, 1024), (512, 2048), (896, 3584)),
    "internimage_g": ((896, 896), (896, 3584)),
    "vit_adapter_t": ((512, 512),),
    "vit_adapter_s": ((512, 512),),
    "vit_adapter_b": ((480, 480), (512, 512)),
    "vit_adapter_l": ((128, 128), (480, 480), (512, 512), (640, 640), (896, 896)),
    "vit_t": ((512, 512),),
    "vit_s": ((512, 512),),
    "vit_b": ((512, 512),),
    "vit_l": ((512, 512),),
    "beit_b": ((512, 512),),
    "beit_l": ((128, 128), (480, 480), (512, 512), (640, 640), (896, 896)),
    "pixel_decoder_256": ((128, 128), (480, 480), (512, 512), (896, 896), (1024, 1024)),
    "pixel_decoder_1024": ((480, 480), (512, 512), (640, 640), (896, 896), (512, 2048))
    + ((896, 3584),),
}


def calls(model: str, hw: HW) -> dict[str, Call]:
    """Returns the distinct calls of a part of a model for one input size, by name.

    Args:
      model: a key of `INPUTS`.
      hw: (height, width) of the input, in pixels.
    """
    family, _, size = model.rpartition("_")
    if family == "internimage":
        groups, channels = INTERNIMAGE[size]
        return {
            f"stage {i}": DCNv3(*at_stride(hw, 4 * 2**i), groups * 2**i, channels) for i in range(4)
        }
    fine, middle, coarse = (at_stride(hw, stride) for stride in (8, 16, 32))
    tokens = sum(height * width for height, width in (fine, middle, coarse))
    if family == "pixel_decoder":
        return {"encoder": MSDeformAttn(tokens, (coarse, middle, fine), *PIXEL_DECODER[int(size)])}
    height, width = middle
    if family == "vit":
        return {"block": SelfAttention(height * width, *VIT[size])}
    if family == "beit":
        return {"block": SelfAttention(1 + height * width, *VIT[size], middle)}
    heads = VIT_ADAPTER[size]
    return {
        "injector": MSDeformAttn(height * width, (fine, middle, coarse), *heads),
        "extractor": MSDeformAttn(tokens, (middle,), *heads),
    }


def at_stride(hw: HW, stride: int) -> HW:
    """Returns the (height, width) of a feature map at a stride."""
    height, width = hw
    return height // stride, width // stride


def convolutions() -> Iterator[tuple[str, Conv3x3]]:
    """Yields the largest convolutions of the published heads, with a name that gives their origin.

    They are those of UPerNet, of its auxiliary head on three backbones, and of Mask2Former's pixel
    decoder, at training crops. A convolution to another number of channels comes with its
    gradient, which is one from that number.
    """
    found = {}
    for model, hw, (third, fourth) in (
        ("internimage_t", (512, 1024), (256, 512)),
        ("internimage_l", (512, 1024), (640, 1280)),
        ("vit_adapter_b", (512, 512), (768, 768)),
    ):
        size = f"{hw[0]}x{hw[1]}"
        for stride in (4, 8, 16):
            found[f"uper_head {size} stride {stride}"] = Conv3x3(*at_stride(hw, stride), 512, 512)
        for head, stride, channels, features in (
            ("uper_head", 32, fourth, 512),
            ("fcn_head", 16, third, 256),
        ):
            map_hw, name = at_stride(hw, stride), f"{head} on {model} {size}"
            found[name] = Conv3x3(*map_hw, channels, features)
            found[f"{name} gradient"] = Conv3x3(*map_hw, features, channels)
    found["pixel_decoder_1024 896x896"] = Conv3x3(*at_stride((896, 896), 4), 1024, 1024)
    seen = set()
    for name, call in found.items():
        if call not in seen:
            seen.add(call)
            yield name, call


def every_call() -> Iterator[tuple[str, Call]]:
    """Yields every distinct call of all models at all sizes, with a name that gives its origin."""
    seen = set()
    for model, sizes in INPUTS.items():
        for hw in sizes:
            for name, call in calls(model, hw).items():
                if call not in seen:
                    seen.add(call)
                    yield f"{model} {hw[0]}x{hw[1]} {name}", call
