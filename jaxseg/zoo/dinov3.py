"""Lists the transformers of DINOv3 and the segmentors on them.

The scores are those of arXiv:2508.10104 (tables 3, 11 and 14) and of the model card in
github.com/facebookresearch/dinov3. The weights are under a license of their own and are gated: they
are downloaded by hand after one has asked for access. Of the segmentors, only the largest with
Mask2Former was published.
"""

from jaxseg.zoo.weights import Model, Weights

REPOSITORY = "https://github.com/facebookresearch/dinov3"
FILES = "https://dl.fbaipublicfiles.com/dinov3"
LICENSE = "LicenseRef-DINOv3"


def _file(name: str, file: str, sha256: str) -> dict[str, str]:
    """Returns where the file of a model is; its name ends with the first digits of its sha256."""
    url = f"{FILES}/dinov3_{name}/{file}-{sha256}.pth"
    return {"url": url, "sha256": sha256, "license": LICENSE, "gated_by": REPOSITORY}


def _backbone(name: str, images: str, sha256: str) -> Weights:
    whole = f"dinov3_{name}_{images}"
    return Weights(whole, **_file(name, f"dinov3_{name}_pretrain_{images}", sha256))


def _segmentor(transformer: str, head: str, crop: int, steps: int, original: str, **facts) -> Model:
    """Makes a segmentor on ADE20K.

    Args:
      transformer: the name of its transformer.
      head: the name of its head in the original, and here.
      crop: the side of training images, in pixels.
      steps: training steps.
      original: the name of the original config file.
      **facts: the other attributes of the model.
    """
    kind = {"m2f": "mask2former", "linear": "linear"}[head]
    return Model(
        name=f"dinov3_{transformer}_ade20k_{head}",
        config=f"configs/ade20k.py:{kind}_dinov3_{transformer}",
        dataset="ade20k",
        original_config=f"dinov3/eval/segmentation/configs/{original}",
        crop_hw=(crop, crop),
        batch_size=16,
        steps=steps,
        start=f"dinov3_{transformer}_lvd1689m",
        log_url=None,
        **facts,
    )


def _linear(transformer: str, params_m: float, miou_ss: float) -> Model:
    original = "config-ade20k-linear-training.yaml"
    facts = {"url": None, "params_m": params_m, "miou_ss": miou_ss}
    return _segmentor(transformer, "linear", 512, 40_000, original, **facts)


BACKBONES: tuple[Weights, ...] = (
    _backbone("vits16", "lvd1689m", "08c60483"),
    _backbone("vits16plus", "lvd1689m", "4057cbaa"),
    _backbone("vitb16", "lvd1689m", "73cec8be"),
    _backbone("vitl16", "lvd1689m", "8aa4cbdd"),
    _backbone("vitl16plus", "lvd1689m", "46503df0"),
    _backbone("vith16plus", "lvd1689m", "7c1da9a5"),
    _backbone("vit7b16", "lvd1689m", "a955f4ea"),
    _backbone("vitl16", "sat493m", "eadcf0ff"),
    _backbone("vit7b16", "sat493m", "a6675841"),
)
MODELS: tuple[Model, ...] = (
    _segmentor(
        "vit7b16",
        "m2f",
        896,
        20_000,
        "config-ade20k-m2f-inference.yaml",
        **_file("vit7b16", "dinov3_vit7b16_ade20k_m2f_head", "bf307cb1"),
        backbone="dinov3_vit7b16_lvd1689m",
        params_m=7643,
        miou_ss=62.6,
        miou_ms=63.0,
    ),
)
WITHOUT_WEIGHTS: tuple[Model, ...] = (
    _linear("vits16", 21.7, 47.0),
    _linear("vits16plus", 28.8, 48.8),
    _linear("vitb16", 85.8, 51.8),
    _linear("vitl16", 303.3, 54.9),
    _linear("vith16plus", 840.8, 54.8),
    _linear("vit7b16", 6717, 55.9),
)
