"""Checks before any computation that the model can take the image sizes of the config."""

from ml_collections import ConfigDict

from jaxseg.data import views
from jaxseg.errors import ConfigError
from jaxseg.inference.sliding_window import parse_sliding_window
from jaxseg.models.backbones import BACKBONES

SMALLEST = 32  # pixels: the stride of the coarsest features


def check_image_sizes(config: ConfigDict):
    """Checks that the backbone can take the crops, windows and resized images of the config.

    Raises:
      ConfigError: if it cannot. The message names the setting and its allowed values.
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
            f" {multiple} only; use config.eval.mode=slide or resize=within"
        )
    for name, numbers in sides.items():
        if any(number % multiple for number in numbers):
            raise ConfigError(
                f"{name}={', '.join(map(str, numbers))}: multiples of {multiple} are needed,"
                f" because {config.model.backbone.kind} takes only images with such sides"
            )
