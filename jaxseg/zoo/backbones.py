"""Lists the pre-trained backbones that training starts from.

The licenses are those of the repositories of their authors: github.com/OpenGVLab/InternImage,
github.com/facebookresearch/deit and github.com/microsoft/unilm (BEiT). ViT-Adapter releases copies
of AugReg's and Uni-Perceiver's weights and names no license for them. DINOv3's are in `dinov3.py`.
DINOv2's are of github.com/facebookresearch/dinov2.
"""

from jaxseg.zoo import dinov3, internimage, vit_adapter
from jaxseg.zoo.weights import Weights

DEIT = "https://dl.fbaipublicfiles.com/deit"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
# BEiT's authors moved their files here. ViT-Adapter's README still names the first location, on
# conversationhub.blob.core.windows.net, which is no longer public.
BEIT = "https://github.com/addf400/files/releases/download"


def _internimage(name: str) -> Weights:
    return Weights(name, f"{internimage.FILES}/{name}.pth", license=internimage.LICENSE)


def _deit(name: str, sha256: str) -> Weights:
    """Makes a DeiT; its file's name ends with the first digits of the file's sha256."""
    return Weights(name, f"{DEIT}/{name}-{sha256}.pth", sha256, license="Apache-2.0")


def _dinov2(name: str) -> Weights:
    size = name.removesuffix("_reg")
    file = f"dinov2_{size}_{'reg4_' if name != size else ''}pretrain.pth"
    return Weights(f"dinov2_{name}", f"{DINOV2}/dinov2_{size}/{file}", license="Apache-2.0")


def _vit_adapter(name: str, file: str) -> Weights:
    return Weights(name, f"{vit_adapter.RELEASES}/{file}")


def _beit(name: str, release: str) -> Weights:
    return Weights(name, f"{BEIT}/{release}/{name}.pth", license="MIT")


BACKBONES: tuple[Weights, ...] = (
    _internimage("internimage_t_1k_224"),
    _internimage("internimage_s_1k_224"),
    _internimage("internimage_b_1k_224"),
    _internimage("internimage_l_22k_192to384"),
    _internimage("internimage_xl_22k_192to384"),
    _internimage("internimage_h_jointto22k_384"),
    _internimage("internimage_g_pretrainto22k_384"),
    _deit("deit_tiny_patch16_224", "a1311bcf"),
    _deit("deit_small_patch16_224", "cd65a155"),
    _deit("deit_base_patch16_224", "b5f2ef4d"),
    _vit_adapter(
        "augreg_tiny_patch16_224",
        "v0.3.1/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.03-res_224.pth",
    ),
    _vit_adapter(
        "augreg_base_patch16_384",
        "v0.3.1/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.01-res_384.pth",
    ),
    _vit_adapter(
        "augreg_large_patch16_384",
        "v0.1.6/L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1"
        "--imagenet2012-steps_20k-lr_0.01-res_384.pth",
    ),
    _vit_adapter(
        "uniperceiver_large_patch16_224",
        "v0.3.1/uni-perceiver-large-L24-H1024-224size-pretrained_converted.pth",
    ),
    _beit("beit_base_patch16_224_pt22k_ft22k", "v1.0"),
    _beit("beit_large_patch16_224_pt22k_ft22k", "v1.0"),
    _beit("beitv2_large_patch16_224_pt1k_ft21k", "BEiT-v2"),
    *(_dinov2(f"vit{size}14{end}") for size in "sblg" for end in ("", "_reg")),
    *dinov3.BACKBONES,
)
