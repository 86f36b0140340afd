"""Lists the models of ViT-Adapter, and BEiT without an adapter.

The numbers and the URLs come from the READMEs of github.com/czczup/ViT-Adapter. The license is that
of the same repository.
"""

from jaxseg.zoo.weights import Model, make_model

RELEASES = "https://github.com/czczup/ViT-Adapter/releases/download"
LOGS = "https://huggingface.co/czczup/ViT-Adapter/raw/main"
ISSUES = "https://github.com/czczup/ViT-Adapter/issues"
LICENSE = "Apache-2.0"


def _published(
    name: str, file: str, config: str, *, log: str | None = "{name}.log", **facts
) -> Model:
    """Makes a model with published weights.

    Args:
      name: the name of its original config file, without .py.
      file: the release and the file's name in it, which is not always that of the config.
      config: the value of --config for the same model here.
      log: the name of its log, by default like that of the config.
      **facts: the other attributes of the model.
    """
    log_url = f"{LOGS}/{log.format(name=name)}" if log else None
    url = f"{RELEASES}/{file}"
    return make_model(name, config, url=url, license=LICENSE, log_url=log_url, **facts)


# fmt: off
MODELS: tuple[Model, ...] = (
    _published("upernet_deit_adapter_tiny_512_160k_ade20k",
        "v0.3.1/upernet_deit_adapter_tiny_512_160_ade20k.pth.tar",
        "configs/ade20k.py:upernet_deit_adapter_t",
        start="deit_tiny_patch16_224",
        params_m=36, miou_ss=42.6, miou_ms=43.6),
    _published("upernet_deit_adapter_small_512_160k_ade20k",
        "v0.3.1/upernet_deit_adapter_small_512_160k_ade20k.pth",
        "configs/ade20k.py:upernet_deit_adapter_s",
        start="deit_small_patch16_224",
        params_m=58, miou_ss=46.2, miou_ms=47.1, log=None),
    _published("upernet_deit_adapter_base_512_160k_ade20k",
        "v0.3.1/upernet_deit_adapter_base_512_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_deit_adapter_b",
        start="deit_base_patch16_224",
        params_m=134, miou_ss=48.8, miou_ms=49.7),
    _published("upernet_augreg_adapter_tiny_512_160k_ade20k",
        "v0.3.1/upernet_augreg_adapter_tiny_512_160_ade20k.pth.tar",
        "configs/ade20k.py:upernet_augreg_adapter_t",
        start="augreg_tiny_patch16_224",
        params_m=36, miou_ss=43.9, miou_ms=44.8,
        log="upernet_augreg_adapter_tiny_512_160_ade20k.log"),
    _published("upernet_augreg_adapter_base_512_160k_ade20k",
        "v0.3.1/upernet_augreg_adapter_base_512_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_augreg_adapter_b",
        start="augreg_base_patch16_384",
        params_m=134, miou_ss=51.9, miou_ms=52.5),
    _published("upernet_augreg_adapter_large_512_160k_ade20k",
        "v0.3.1/upernet_augreg_adapter_large_512_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_augreg_adapter_l",
        start="augreg_large_patch16_384",
        params_m=364, miou_ss=53.4, miou_ms=54.4),
    _published("upernet_uniperceiver_adapter_large_512_160k_ade20k",
        "v0.3.1/upernet_uniperceiver_adapter_large_512_160k_ade20k.pth",
        "configs/ade20k.py:upernet_uniperceiver_adapter_l",
        start="uniperceiver_large_patch16_224",
        params_m=364, miou_ss=55.0, miou_ms=55.4),
    _published("upernet_beit_adapter_large_640_160k_ade20k_ss",
        "v0.2.1/upernet_beit_adapter_large_640_160k_ade20k.pth.tar",
        "configs/ade20k.py:upernet_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=451, miou_ss=58.0, miou_ms=58.4),
    _published("upernet_beit_adapter_large_512_80k_cocostuff10k_ss",
        "v0.2.4/upernet_beit_adapter_large_512_80k_cocostuff10k.pth.tar",
        "configs/coco_stuff10k.py:upernet_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=451, miou_ss=51.0, miou_ms=51.4),
    _published("upernet_beit_adapter_large_640_80k_cocostuff164k_ss",
        "v0.2.6/upernet_beit_adapter_large_640_80k_cocostuff164k.pth.tar",
        "configs/coco_stuff164k.py:upernet_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=451, miou_ss=50.5, miou_ms=50.7),
    _published("upernet_beit_adapter_large_480_80k_pascal_context_59_ss",
        "v0.2.7/upernet_beit_adapter_large_480_80k_pascal_context_59.pth.tar",
        "configs/pascal_context.py:upernet_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=451, miou_ss=67.0, miou_ms=67.5),
    _published("mask2former_beit_adapter_large_640_160k_ade20k_ss",
        "v0.2.2/mask2former_beit_adapter_large_640_160k_ade20k.zip",
        "configs/ade20k.py:mask2former_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=568, miou_ss=58.3, miou_ms=59.0),
    _published("mask2former_beit_adapter_large_896_80k_ade20k_ss",
        "v0.2.0/mask2former_beit_adapter_large_896_80k_ade20k.zip",
        "configs/ade20k.py:mask2former_beit_adapter_l_cocostuff",
        start="mask2former_beit_adapter_large_896_80k_cocostuff164k_ss",
        params_m=571, miou_ss=59.4, miou_ms=60.5),
    _published("mask2former_beitv2_adapter_large_896_80k_ade20k_ss",
        "v0.3.1/mask2former_beitv2_adapter_large_896_80k_ade20k.zip",
        "configs/ade20k.py:mask2former_beitv2_adapter_l_cocostuff",
        start="mask2former_beitv2_adapter_large_896_80k_cocostuff164k_ss",
        params_m=571, miou_ss=61.2, miou_ms=61.5),
    _published("mask2former_beit_adapter_large_896_80k_cityscapes_ss",
        "v0.2.3/mask2former_beit_adapter_large_896_80k_cityscapes.zip",
        "configs/cityscapes.py:mask2former_beit_adapter_l_mapillary",
        start="mask2former_beit_adapter_large_896_80k_mapillary_ss",
        params_m=571, miou_ss=84.9, miou_ms=85.8, miou_test=85.2),
    _published("mask2former_beit_adapter_large_896_80k_mapillary_ss",
        "v0.2.3/mask2former_beit_adapter_large_896_80k_mapillary.zip",
        "configs/mapillary.py:mask2former_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=571, folder="cityscapes", log=None),
    _published("mask2former_beit_adapter_large_896_80k_cocostuff164k_ss",
        "v0.2.6/mask2former_beit_adapter_large_896_80k_cocostuff164k.zip",
        "configs/coco_stuff164k.py:mask2former_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=571, miou_ss=51.7, miou_ms=52.0),
    _published("mask2former_beitv2_adapter_large_896_80k_cocostuff164k_ss",
        "v0.3.1/mask2former_beitv2_adapter_large_896_80k_cocostuff164k.zip",
        "configs/coco_stuff164k.py:mask2former_beitv2_adapter_l",
        start="beitv2_large_patch16_224_pt1k_ft21k",
        params_m=571, miou_ss=52.3),
    _published("mask2former_beit_adapter_base_512_40k_cocostuff10k_ss",
        "v0.2.9/mask2former_beit_adapter_base_512_40k_cocostuff10k.pth.tar",
        "configs/coco_stuff10k.py:mask2former_beit_adapter_b",
        start="beit_base_patch16_224_pt22k_ft22k",
        params_m=120, miou_ss=50.0, miou_ms=50.5),
    _published("mask2former_beit_adapter_large_512_40k_cocostuff10k_ss",
        "v0.2.5/mask2former_beit_adapter_large_512_40k_cocostuff10k.zip",
        "configs/coco_stuff10k.py:mask2former_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=568, miou_ss=53.2, miou_ms=54.2),
    _published("mask2former_beit_adapter_base_480_40k_pascal_context_59_ss",
        "v0.2.8/mask2former_beit_adapter_base_480_40k_pascal_context_59.pth.tar",
        "configs/pascal_context.py:mask2former_beit_adapter_b",
        start="beit_base_patch16_224_pt22k_ft22k",
        params_m=120, miou_ss=64.0, miou_ms=64.4),
    _published("mask2former_beit_adapter_large_480_40k_pascal_context_59_ss",
        "v0.2.7/mask2former_beit_adapter_large_480_40k_pascal_context_59.zip",
        "configs/pascal_context.py:mask2former_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        params_m=568, miou_ss=67.8, miou_ms=68.2),
)

# Their configs were published, and of some the numbers and a log.
WITHOUT_WEIGHTS: tuple[Model, ...] = (
    make_model("mask2former_beit_adapter_large_512_80k_potsdam_ss",
        "configs/potsdam.py:mask2former_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        url=None, log_url=f"{ISSUES}/38", batch_size=8, params_m=352, miou_ss=80.0),
    make_model("mask2former_beit_adapter_large_128_40k_chase_db1_ss",
        "configs/chase_db1.py:mask2former_beit_adapter_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        url=None, log_url=f"{ISSUES}/11", params_m=350, mdice=89.4),
    make_model("mask2former_beitv2_adapter_large_896_160k_ade20k_ss",
        "configs/ade20k.py:mask2former_beitv2_adapter_l",
        start="beitv2_large_patch16_224_pt1k_ft21k",
        url=None, log_url=None, params_m=571),
    make_model("upernet_deit_adapter_light_base_512_160k_ade20k",
        "configs/ade20k.py:upernet_deit_adapter_light_b",
        start="deit_base_patch16_224",
        url=None, log_url=None),
    make_model("upernet_beit_large_512_160k_ade20k_ss",
        "configs/ade20k.py:upernet_beit_l",
        start="beit_large_patch16_224_pt22k_ft22k",
        url=None, log_url=None),
)
# fmt: on
