"""Lists the models of InternImage.

The numbers and the URLs come from the READMEs of github.com/OpenGVLab/InternImage. The license is
that of the same repository. The models were trained on A100 GPUs, on one node of eight unless
`train_time` says otherwise. The logs on ADE20K are of later runs, whose scores differ slightly.
"""

from jaxseg.zoo.weights import Model, make_model

FILES = "https://huggingface.co/OpenGVLab/InternImage/resolve/main"
LOGS = "https://huggingface.co/OpenGVLab/InternImage/raw/main"
LICENSE = "MIT"


def _published(name: str, config: str, *, log: str | None = "{file}.log.json", **facts) -> Model:
    """Makes a model with published weights.

    Args:
      name: the name of its original config file, without .py.
      config: the value of --config for the same model here.
      log: the name of its log, by default like that of the weights.
      **facts: the other attributes of the model.
    """
    file = name.removesuffix("_ss")  # "_ss" means single-scale evaluation; the weights are the same
    log_url = f"{LOGS}/{log.format(file=file)}" if log else None
    url = f"{FILES}/{file}.pth"
    return make_model(name, config, url=url, license=LICENSE, log_url=log_url, **facts)


# fmt: off
MODELS: tuple[Model, ...] = (
    _published("upernet_internimage_t_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_t",
        start="internimage_t_1k_224",
        params_m=59, flops_g=1889, flops_hw=(1024, 2048),
        miou_ss=82.58, miou_ms=83.40, train_speed=0.32, train_time="14.5h"),
    _published("upernet_internimage_s_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_s",
        start="internimage_s_1k_224",
        params_m=80, flops_g=2035, flops_hw=(1024, 2048),
        miou_ss=82.74, miou_ms=83.45, train_speed=0.36, train_time="16.5h"),
    _published("upernet_internimage_b_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_b",
        start="internimage_b_1k_224",
        params_m=128, flops_g=2369, flops_hw=(1024, 2048),
        miou_ss=83.18, miou_ms=83.97, train_speed=0.39, train_time="17h"),
    _published("upernet_internimage_l_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_l",
        start="internimage_l_22k_192to384",
        params_m=256, flops_g=3234, flops_hw=(1024, 2048),
        miou_ss=83.68, miou_ms=84.41, train_speed=0.50, train_time="23h"),
    _published("upernet_internimage_xl_512x1024_160k_cityscapes",
        "configs/cityscapes.py:upernet_internimage_xl",
        start="internimage_xl_22k_192to384",
        params_m=368, flops_g=4022, flops_hw=(1024, 2048),
        miou_ss=83.62, miou_ms=84.28, train_speed=0.56, train_time="26h"),
    _published("upernet_internimage_l_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:upernet_internimage_l_mapillary",
        start="upernet_internimage_l_512x1024_80k_mapillary",
        params_m=256, flops_g=3234, flops_hw=(1024, 2048),
        miou_ss=85.94, miou_ms=86.22, train_speed=0.50, train_time="23h"),
    _published("upernet_internimage_xl_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:upernet_internimage_xl_mapillary",
        start="upernet_internimage_xl_512x1024_80k_mapillary",
        params_m=368, flops_g=4022, flops_hw=(1024, 2048),
        miou_ss=86.20, miou_ms=86.42, train_speed=0.56, train_time="26h"),
    _published("segformer_internimage_l_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:segformer_internimage_l_mapillary",
        start="segformer_internimage_l_512x1024_80k_mapillary",
        params_m=220, flops_g=1580, flops_hw=(1024, 2048),
        miou_ss=85.16, miou_ms=85.67, train_speed=0.37, train_time="17h"),
    _published("segformer_internimage_xl_512x1024_160k_mapillary2cityscapes",
        "configs/cityscapes.py:segformer_internimage_xl_mapillary",
        start="segformer_internimage_xl_512x1024_80k_mapillary",
        params_m=330, flops_g=2364, flops_hw=(1024, 2048),
        miou_ss=85.41, miou_ms=85.93, train_speed=0.43, train_time="19.5h"),
    _published("upernet_internimage_l_512x1024_80k_mapillary",
        "configs/mapillary.py:upernet_internimage_l",
        start="internimage_l_22k_192to384",
        params_m=256, flops_g=3234, flops_hw=(1024, 2048),
        train_speed=0.50, train_time="11.5h", log=None),
    _published("upernet_internimage_xl_512x1024_80k_mapillary",
        "configs/mapillary.py:upernet_internimage_xl",
        start="internimage_xl_22k_192to384",
        params_m=368, flops_g=4022, flops_hw=(1024, 2048),
        train_speed=0.56, train_time="13h", log=None),
    _published("segformer_internimage_l_512x1024_80k_mapillary",
        "configs/mapillary.py:segformer_internimage_l",
        start="internimage_l_22k_192to384",
        params_m=220, flops_g=1580, flops_hw=(1024, 2048),
        train_speed=0.37, train_time="9h", log=None),
    _published("segformer_internimage_xl_512x1024_80k_mapillary",
        "configs/mapillary.py:segformer_internimage_xl",
        start="internimage_xl_22k_192to384",
        params_m=330, flops_g=2364, flops_hw=(1024, 2048),
        train_speed=0.43, train_time="10h", log=None),
    _published("upernet_internimage_t_512_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_t",
        start="internimage_t_1k_224",
        params_m=59, flops_g=944, flops_hw=(512, 2048),
        miou_ss=47.9, miou_ms=48.1, train_speed=0.23, train_time="10.5h"),
    _published("upernet_internimage_s_512_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_s",
        start="internimage_s_1k_224",
        params_m=80, flops_g=1017, flops_hw=(512, 2048),
        miou_ss=50.1, miou_ms=50.9, train_speed=0.25, train_time="11.5h"),
    _published("upernet_internimage_b_512_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_b",
        start="internimage_b_1k_224",
        params_m=128, flops_g=1185, flops_hw=(512, 2048),
        miou_ss=50.8, miou_ms=51.3, train_speed=0.26, train_time="12h"),
    _published("upernet_internimage_l_640_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_l",
        start="internimage_l_22k_192to384",
        params_m=256, flops_g=2526, flops_hw=(640, 2560),
        miou_ss=53.9, miou_ms=54.1, train_speed=0.42, train_time="19h"),
    _published("upernet_internimage_xl_640_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_xl",
        start="internimage_xl_22k_192to384",
        params_m=368, flops_g=3142, flops_hw=(640, 2560),
        miou_ss=55.0, miou_ms=55.3, train_speed=0.47, train_time="22h"),
    _published("upernet_internimage_h_896_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_h",
        start="internimage_h_jointto22k_384",
        params_m=1120, flops_g=3566, flops_hw=(896, 896),
        miou_ss=59.9, miou_ms=60.3, train_speed=0.94, train_time="2d (2n)"),
    _published("mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes",
        "configs/cityscapes.py:mask2former_internimage_h_mapillary",
        start="mask2former_internimage_h_896x896_80k_mapillary",
        params_m=1094, flops_g=7878, flops_hw=(1024, 2048),
        miou_ss=86.37, miou_ms=86.96),
    _published("mask2former_internimage_h_896x896_80k_mapillary",
        "configs/mapillary.py:mask2former_internimage_h",
        start="internimage_h_jointto22k_384",
        params_m=1094, flops_g=7878, flops_hw=(1024, 2048),
        log=None),
    _published("mask2former_internimage_h_896_80k_cocostuff2ade20k_ss",
        "configs/ade20k.py:mask2former_internimage_h_cocostuff",
        start="mask2former_internimage_h_896_80k_cocostuff164k",
        params_m=1310, flops_g=4635, flops_hw=(896, 896),
        miou_ss=62.6, miou_ms=62.9, train_speed=1.21, train_time="1.5d (2n)"),
    _published("mask2former_internimage_h_896_80k_cocostuff164k",
        "configs/coco_stuff164k.py:mask2former_internimage_h",
        start="internimage_h_jointto22k_384",
        params_m=1310, flops_g=4635, flops_hw=(896, 896),
        miou_ss=52.6, miou_ms=52.8, train_speed=1.60, train_time="1.5d (2n)"),
    _published("mask2former_internimage_h_512_40k_cocostuff164k_to_10k",
        "configs/coco_stuff10k.py:mask2former_internimage_h_cocostuff",
        start="mask2former_internimage_h_896_80k_cocostuff164k",
        params_m=1280, flops_g=1528, flops_hw=(512, 512),
        miou_ss=59.2, miou_ms=59.6),
    _published("mask2former_internimage_h_480_40k_pascal_context_59",
        "configs/pascal_context.py:mask2former_internimage_h",
        start="internimage_h_jointto22k_384",
        params_m=1070, flops_g=867, flops_hw=(480, 480),
        miou_ss=69.7, miou_ms=70.3),
    _published("mask2former_internimage_h_480_40k_nyu",
        "configs/nyu_depth_v2.py:mask2former_internimage_h",
        start="internimage_h_jointto22k_384",
        params_m=1070, flops_g=867, flops_hw=(480, 480),
        miou_ss=67.1, miou_ms=68.1),
)

# Its config was published, but no numbers.
WITHOUT_WEIGHTS: tuple[Model, ...] = (
    make_model("upernet_internimage_g_896_160k_ade20k",
        "configs/ade20k.py:upernet_internimage_g",
        start="internimage_g_pretrainto22k_384",
        url=None, log_url=None),
)
# fmt: on
