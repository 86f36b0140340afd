"""Lists the published models: their scores, their cost, and the URLs of their weights.

The numbers come from the READMEs of InternImage (github.com/OpenGVLab/InternImage) and ViT-Adapter
(github.com/czczup/ViT-Adapter). InternImage was trained on eight A100 GPUs (one node). To add
another family, write a function like `_internimage` for its URLs, and add its rows to `MODELS`.
"""

import dataclasses
import difflib
import fnmatch
import os
import pathlib
from collections.abc import Iterable

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.zoo import download

INTERNIMAGE = "https://huggingface.co/OpenGVLab/InternImage/resolve/main"
VIT_ADAPTER = "https://github.com/czczup/ViT-Adapter/releases/download"
DEIT = "https://dl.fbaipublicfiles.com/deit"
# BEiT's authors moved their files here. ViT-Adapter's README still names the first location, on
# conversationhub.blob.core.windows.net, which is no longer public.
BEIT = "https://github.com/addf400/files/releases/download"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published file of weights.

    Attributes:
      name: its name in this catalogue.
      url: where to download it.
    """

    name: str
    url: str

    @property
    def file_name(self) -> str:
        """Returns the name of the file at the end of its URL."""
        return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Model(Weights):
    """A published segmentation model, named like its original config file without .py.

    None stands for a number that was not published.

    Attributes:
      dataset: the name of the config file for its dataset, without .py.
      config: the value of --config for the same model here.
      original_config: path of the config file in the original repository.
      params_m: parameters in millions, including those of the auxiliary head.
      flops_g: multiply-adds in billions to predict one image of `flops_hw`.
      flops_hw: height and width at which `flops_g` was counted, not always those of the crop.
      miou_ss: mIoU in percent at a single scale.
      miou_ms: mIoU in percent at several scales.
      train_speed: seconds per training step.
      train_time: time of all training steps, as published: "14.5h"; "2d (2n)" is two days on two
        nodes.
    """

    dataset: str
    config: str
    original_config: str
    params_m: float
    flops_g: float | None
    flops_hw: tuple[int, int] | None
    miou_ss: float | None
    miou_ms: float | None
    train_speed: float | None
    train_time: str | None


def _model(name: str, url: str, config: str, folder: str | None, *facts) -> Model:
    """Makes a model; `folder` is that of the original config if not named like the dataset."""
    dataset = pathlib.PurePosixPath(config.partition(":")[0]).stem
    original_config = f"segmentation/configs/{folder or dataset}/{name}.py"
    return Model(name, url, dataset, config, original_config, *facts)


def _internimage(name: str, config: str, *facts) -> Model:
    file = name.removesuffix("_ss")  # "_ss" means single-scale evaluation; the weights are the same
    return _model(name, f"{INTERNIMAGE}/{file}.pth", config, None, *facts)


def _vit_adapter(
    name: str,
    file: str,
    config: str,
    params_m: float,
    miou_ss: float | None,
    miou_ms: float | None,
    folder: str | None = None,
) -> Model:
    """Makes a model of ViT-Adapter.

    Args:
      file: the release and the file's name in it, which is not always that of the config.
    """
    facts = (params_m, None, None, miou_ss, miou_ms, None, None)
    return _model(name, f"{VIT_ADAPTER}/{file}", config, folder, *facts)


# InternImage: parameters (M), FLOPs (G), their (height, width), mIoU at a single and at several
# scales, seconds per step, training time. ViT-Adapter: parameters and both mIoU only.
# fmt: off
MODELS: tuple[Model, ...] = (
    _internimage("upernet_internimage_t_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_t",
        59, 1889, (1024, 2048), 82.58, 83.40, 0.32, "14.5h"),
    _internimage("upernet_internimage_s_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_s",
        80, 2035, (1024, 2048), 82.74, 83.45, 0.36, "16.5h"),
    _internimage("upernet_internimage_b_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_b",
        128, 2369, (1024, 2048), 83.18, 83.97, 0.39, "17h"),
    _internimage("upernet_internimage_l_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_l",
        256, 3234, (1024, 2048), 83.68, 84.41, 0.50, "23h"),
    _internimage("upernet_internimage_xl_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_xl",
        368, 4022, (1024, 2048), 83.62, 84.28, 0.56, "26h"),
    _internimage("upernet_internimage_l_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:upernet_internimage_l_mapillary",
        256, 3234, (1024, 2048), 85.94, 86.22, 0.50, "23h"),
    _internimage("upernet_internimage_xl_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:upernet_internimage_xl_mapillary",
        368, 4022, (1024, 2048), 86.20, 86.42, 0.56, "26h"),
    _internimage("segformer_internimage_l_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:segformer_internimage_l_mapillary",
        220, 1580, (1024, 2048), 85.16, 85.67, 0.37, "17h"),
    _internimage("segformer_internimage_xl_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:segformer_internimage_xl_mapillary",
        330, 2364, (1024, 2048), 85.41, 85.93, 0.43, "19.5h"),
    _internimage("upernet_internimage_l_512x1024_80k_mapillary",
        "configs/mapillary.py:upernet_internimage_l",
        256, 3234, (1024, 2048), None, None, 0.50, "11.5h"),
    _internimage("upernet_internimage_xl_512x1024_80k_mapillary",
        "configs/mapillary.py:upernet_internimage_xl",
        368, 4022, (1024, 2048), None, None, 0.56, "13h"),
    _internimage("segformer_internimage_l_512x1024_80k_mapillary",
        "configs/mapillary.py:segformer_internimage_l",
        220, 1580, (1024, 2048), None, None, 0.37, "9h"),
    _internimage("segformer_internimage_xl_512x1024_80k_mapillary",
        "configs/mapillary.py:segformer_internimage_xl",
        330, 2364, (1024, 2048), None, None, 0.43, "10h"),
    _internimage("upernet_internimage_t_512_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_t",
        59, 944, (512, 2048), 47.9, 48.1, 0.23, "10.5h"),
    _internimage("upernet_internimage_s_512_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_s",
        80, 1017, (512, 2048), 50.1, 50.9, 0.25, "11.5h"),
    _internimage("upernet_internimage_b_512_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_b",
        128, 1185, (512, 2048), 50.8, 51.3, 0.26, "12h"),
    _internimage("upernet_internimage_l_640_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_l",
        256, 2526, (640, 2560), 53.9, 54.1, 0.42, "19h"),
    _internimage("upernet_internimage_xl_640_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_xl",
        368, 3142, (640, 2560), 55.0, 55.3, 0.47, "22h"),
    _internimage("upernet_internimage_h_896_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_h",
        1120, 3566, (896, 896), 59.9, 60.3, 0.94, "2d (2n)"),
    _vit_adapter("upernet_deit_adapter_tiny_512_160k_ade20k",
        "v0.3.1/upernet_deit_adapter_tiny_512_160_ade20k.pth.tar",
        "configs/ade20k.py:upernet_deit_adapter_t", 36, 42.6, 43.6),
    _vit_adapter("upernet_deit_adapter_small_512_160k_ade20k",
        "v0.3.1/upernet_deit_adapter_small_512_160k_ade20k.pth",
        "configs/ade20k.py:upernet_deit_adapter_s", 58, 46.2, 47.1),
    _vit_adapter("upernet_deit_adapter_base_512_160k_ade20k",
        "v0.3.1/upernet_deit_adapter_base_512_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_deit_adapter_b", 134, 48.8, 49.7),
    _vit_adapter("upernet_augreg_adapter_tiny_512_160k_ade20k",
        "v0.3.1/upernet_augreg_adapter_tiny_512_160_ade20k.pth.tar",
        "configs/ade20k.py:upernet_augreg_adapter_t", 36, 43.9, 44.8),
    _vit_adapter("upernet_augreg_adapter_base_512_160k_ade20k",
        "v0.3.1/upernet_augreg_adapter_base_512_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_augreg_adapter_b", 134, 51.9, 52.5),
    _vit_adapter("upernet_augreg_adapter_large_512_160k_ade20k",
        "v0.3.1/upernet_augreg_adapter_large_512_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_augreg_adapter_l", 364, 53.4, 54.4),
    _vit_adapter("upernet_uniperceiver_adapter_large_512_160k_ade20k",
        "v0.3.1/upernet_uniperceiver_adapter_large_512_160k_ade20k.pth",
        "configs/ade20k.py:upernet_uniperceiver_adapter_l", 364, 55.0, 55.4),
    _vit_adapter("upernet_beit_adapter_large_640_160k_ade20k_ss",
        "v0.2.1/upernet_beit_adapter_large_640_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_beit_adapter_l", 451, 58.0, 58.4),
    _vit_adapter("upernet_beit_adapter_large_512_80k_cocostuff10k_ss",
        "v0.2.4/upernet_beit_adapter_large_512_80k_cocostuff10k.pth.tar",
        "configs/coco_stuff10k.py:upernet_beit_adapter_l", 451, 51.0, 51.4),
    _vit_adapter("upernet_beit_adapter_large_640_80k_cocostuff164k_ss",
        "v0.2.6/upernet_beit_adapter_large_640_80k_cocostuff164k.pth.tar",
        "configs/coco_stuff164k.py:upernet_beit_adapter_l", 451, 50.5, 50.7),
    _vit_adapter("upernet_beit_adapter_large_480_80k_pascal_context_59_ss",
        "v0.2.7/upernet_beit_adapter_large_480_80k_pascal_context_59.pth.tar",
        "configs/pascal_context.py:upernet_beit_adapter_l", 451, 67.0, 67.5),
    _internimage("mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes",
        "configs/cityscapes.py:mask2former_internimage_h_mapillary",
        1094, 7878, (1024, 2048), 86.37, 86.96, None, None),
    _internimage("mask2former_internimage_h_896x896_80k_mapillary",
        "configs/mapillary.py:mask2former_internimage_h",
        1094, 7878, (1024, 2048), None, None, None, None),
    _internimage("mask2former_internimage_h_896_80k_cocostuff2ade20k_ss",
        "configs/ade20k.py:mask2former_internimage_h_cocostuff",
        1310, 4635, (896, 896), 62.6, 62.9, 1.21, "1.5d (2n)"),
    _internimage("mask2former_internimage_h_896_80k_cocostuff164k",
        "configs/coco_stuff164k.py:mask2former_internimage_h",
        1310, 4635, (896, 896), 52.6, 52.8, 1.6, "1.5d (2n)"),
    _internimage("mask2former_internimage_h_512_40k_cocostuff164k_to_10k",
        "configs/coco_stuff10k.py:mask2former_internimage_h_cocostuff",
        1280, 1528, (512, 512), 59.2, 59.6, None, None),
    _internimage("mask2former_internimage_h_480_40k_pascal_context_59",
        "configs/pascal_context.py:mask2former_internimage_h",
        1070, 867, (480, 480), 69.7, 70.3, None, None),
    _internimage("mask2former_internimage_h_480_40k_nyu",
        "configs/nyu_depth_v2.py:mask2former_internimage_h",
        1070, 867, (480, 480), 67.1, 68.1, None, None),
    _vit_adapter("mask2former_beit_adapter_large_640_160k_ade20k_ss",
        "v0.2.2/mask2former_beit_adapter_large_640_160k_ade20k.zip",
        "configs/ade20k.py:mask2former_beit_adapter_l", 568, 58.3, 59.0),
    _vit_adapter("mask2former_beit_adapter_large_896_80k_ade20k_ss",
        "v0.2.0/mask2former_beit_adapter_large_896_80k_ade20k.zip",
        "configs/ade20k.py:mask2former_beit_adapter_l_cocostuff", 571, 59.4, 60.5),
    _vit_adapter("mask2former_beitv2_adapter_large_896_80k_ade20k_ss",
        "v0.3.1/mask2former_beitv2_adapter_large_896_80k_ade20k.zip",
        "configs/ade20k.py:mask2former_beitv2_adapter_l_cocostuff", 571, 61.2, 61.5),
    _vit_adapter("mask2former_beit_adapter_large_896_80k_cityscapes_ss",
        "v0.2.3/mask2former_beit_adapter_large_896_80k_cityscapes.zip",
        "configs/cityscapes.py:mask2former_beit_adapter_l_mapillary", 571, 84.9, 85.8),
    _vit_adapter("mask2former_beit_adapter_large_896_80k_mapillary_ss",
        "v0.2.3/mask2former_beit_adapter_large_896_80k_mapillary.zip",
        "configs/mapillary.py:mask2former_beit_adapter_l", 571, None, None, folder="cityscapes"),
    _vit_adapter("mask2former_beit_adapter_large_896_80k_cocostuff164k_ss",
        "v0.2.6/mask2former_beit_adapter_large_896_80k_cocostuff164k.zip",
        "configs/coco_stuff164k.py:mask2former_beit_adapter_l", 571, 51.7, 52.0),
    _vit_adapter("mask2former_beitv2_adapter_large_896_80k_cocostuff164k_ss",
        "v0.3.1/mask2former_beitv2_adapter_large_896_80k_cocostuff164k.zip",
        "configs/coco_stuff164k.py:mask2former_beitv2_adapter_l", 571, 52.3, None),
    _vit_adapter("mask2former_beit_adapter_base_512_40k_cocostuff10k_ss",
        "v0.2.9/mask2former_beit_adapter_base_512_40k_cocostuff10k.pth.tar",
        "configs/coco_stuff10k.py:mask2former_beit_adapter_b", 120, 50.0, 50.5),
    _vit_adapter("mask2former_beit_adapter_large_512_40k_cocostuff10k_ss",
        "v0.2.5/mask2former_beit_adapter_large_512_40k_cocostuff10k.zip",
        "configs/coco_stuff10k.py:mask2former_beit_adapter_l", 568, 53.2, 54.2),
    _vit_adapter("mask2former_beit_adapter_base_480_40k_pascal_context_59_ss",
        "v0.2.8/mask2former_beit_adapter_base_480_40k_pascal_context_59.pth.tar",
        "configs/pascal_context.py:mask2former_beit_adapter_b", 120, 64.0, 64.4),
    _vit_adapter("mask2former_beit_adapter_large_480_40k_pascal_context_59_ss",
        "v0.2.7/mask2former_beit_adapter_large_480_40k_pascal_context_59.zip",
        "configs/pascal_context.py:mask2former_beit_adapter_l", 568, 67.8, 68.2),
)
# fmt: on

# Pre-trained backbones that training starts from.
BACKBONES: tuple[Weights, ...] = (
    *(
        Weights(name, f"{INTERNIMAGE}/{name}.pth")
        for name in (
            "internimage_t_1k_224",
            "internimage_s_1k_224",
            "internimage_b_1k_224",
            "internimage_l_22k_192to384",
            "internimage_xl_22k_192to384",
            "internimage_h_jointto22k_384",
            "internimage_g_pretrainto22k_384",
        )
    ),
    Weights("deit_tiny_patch16_224", f"{DEIT}/deit_tiny_patch16_224-a1311bcf.pth"),
    Weights("deit_small_patch16_224", f"{DEIT}/deit_small_patch16_224-cd65a155.pth"),
    Weights("deit_base_patch16_224", f"{DEIT}/deit_base_patch16_224-b5f2ef4d.pth"),
    Weights(
        "augreg_tiny_patch16_224",
        f"{VIT_ADAPTER}/v0.3.1/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.03-res_224.pth",
    ),
    Weights(
        "augreg_base_patch16_384",
        f"{VIT_ADAPTER}/v0.3.1/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.01-res_384.pth",
    ),
    Weights(
        "augreg_large_patch16_384",
        f"{VIT_ADAPTER}/v0.1.6/L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1"
        "--imagenet2012-steps_20k-lr_0.01-res_384.pth",
    ),
    Weights(
        "uniperceiver_large_patch16_224",
        f"{VIT_ADAPTER}/v0.3.1/uni-perceiver-large-L24-H1024-224size-pretrained_converted.pth",
    ),
    *(
        Weights(name, f"{BEIT}/{release}/{name}.pth")
        for name, release in (
            ("beit_base_patch16_224_pt22k_ft22k", "v1.0"),
            ("beit_large_patch16_224_pt22k_ft22k", "v1.0"),
            ("beitv2_large_patch16_224_pt1k_ft21k", "BEiT-v2"),
        )
    ),
)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the published models that match a shell pattern, in table order."""
    return [model.name for model in MODELS if fnmatch.fnmatchcase(model.name, pattern)]


def find_model(name: str) -> Model:
    """Returns the published model of a name.

    Raises:
      ConfigError: for an unknown name, with the nearest ones.
    """
    return _find(name, MODELS)


def find_recipe(variant: str, dataset: str) -> Model | None:
    """Returns the published model of a recipe, or None if there is none.

    Mapillary with its labels mapped to Cityscapes counts as Mapillary.

    Args:
      variant: the variant of the recipe.
      dataset: the dataset of the recipe.
    """
    found = (model for model in MODELS if model.config.endswith(f":{variant}"))
    return next((model for model in found if dataset.startswith(model.dataset)), None)


def fetch_weights(name: str) -> pathlib.Path:
    """Downloads the checkpoint of a published model or backbone, unless it is in the cache.

    Returns:
      Its path: the published file name in `checkpoints/` of the cache directory. That directory is
      JAXSEG_CACHE, or ~/.cache/jaxseg if it is not set.

    Raises:
      ConfigError: for an unknown name, with the nearest ones.
      CheckpointError: if it cannot be downloaded, with the path to put the file at by hand.
    """
    weights = _find(name, (*MODELS, *BACKBONES))
    try:
        return download.fetch(weights.url, cache_folder() / "checkpoints" / weights.file_name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n  or set JAXSEG_CACHE to another folder") from error


def cache_folder() -> pathlib.Path:
    """Returns the folder that keeps downloads: JAXSEG_CACHE, by default ~/.cache/jaxseg.

    Raises:
      ConfigError: if JAXSEG_CACHE is not set and the user has no home directory.
    """
    folder = os.environ.get("JAXSEG_CACHE")
    try:
        return pathlib.Path(folder or "~/.cache/jaxseg").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home directory to keep downloads in; set JAXSEG_CACHE to a folder"
        ) from error


def _find(name, rows):
    by_name = {row.name: row for row in rows}
    if name not in by_name:
        raise ConfigError(
            f"no published weights {name!r}; the nearest are {nearest(name, by_name)}"
            " (jaxseg zoo lists them)"
        )
    return by_name[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the three names most similar to `name`, for messages."""
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0))
