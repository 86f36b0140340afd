"""The sizes of images that `config` asks a model to take, checked before anything is computed."""

from ml_collections import ConfigDict

from jaxseg.data import views
from jaxseg.errors import ConfigError
from jaxseg.inference.sliding_window import parse_sliding_window
from jaxseg.models.segmentation_model import BACKBONES

SMALLEST = 32  # pixels: the stride of the coarsest features


def check_image_sizes(config: ConfigDict):
    """Refuses crops, windows and resized images that the backbone cannot take.

    Raises:
      ConfigError: naming the setting and what it may be.
    """
    multiple = BACKBONES[config.model.backbone.kind].side_multiple
    crop = config.data.crop_hw
    if len(crop) != 2 or any(not isinstance(side, int) or side < SMALLEST for side in crop):
        raise ConfigError(
            f"config.data.crop_hw={tuple(crop)}: two whole numbers of at least {SMALLEST} pixels,"
            " the stride of the coarsest features"
        )
    sides = {"config.data.crop_hw": crop, "config.data.test_multiple": [config.data.test_multiple]}
    rule, slide = views.evaluation_rule(config), parse_sliding_window(config.eval)
    if slide is not None:
        sides["config.eval.crop_hw"] = slide.crop_hw
    elif rule.resize == "short_side" and multiple > 1:
        raise ConfigError(
            f"config.eval.{config.eval.protocol}.resize=short_side with config.eval.mode=whole"
            f" gives images of any size, and {config.model.backbone.kind} takes multiples of"
            f" {multiple} only: config.eval.mode=slide, or resize=within"
        )
    for name, numbers in sides.items():
        if any(number % multiple for number in numbers):
            raise ConfigError(
                f"{name}={', '.join(map(str, numbers))}: multiples of {multiple} are needed, for"
                f" {config.model.backbone.kind} takes images with such sides only"
            )
