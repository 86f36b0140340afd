"""The views of an image that an evaluation shows to the network: sizes, mirror images, padding.

Knows pixels only; how the scores of views are averaged is `jaxseg.inference`'s business.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from jaxseg.data import transforms
from jaxseg.errors import ConfigError

CHOICES = {
    "resize": ("within", "short_side"),
    "pad": ("none", "before_normalize", "after_normalize"),
}
Hw = tuple[int, int]


class View(NamedTuple):
    """One way to show an image.

    Attributes:
      sizes: heights and widths that the image is resized to, one after the other.
      mirrored: left to right, before it is padded.
      padded_hw: filled up at the bottom and on the right to this size.
      weight: how many of the recipe's views show the same.
    """

    sizes: tuple[Hw, ...]
    mirrored: bool
    padded_hw: Hw
    weight: int

    @property
    def hw(self) -> Hw:
        """The size without padding."""
        return self.sizes[-1]


def evaluation_rule(config):
    """The settings of `config.eval.protocol`.

    Raises:
      ConfigError: for another protocol than these two or none, and for settings that make no view.
    """
    if "protocol" not in config.eval:
        raise ConfigError(
            "config.eval has no protocol: the config is of an earlier jaxseg; --mode eval takes the"
            " recipe's file of today instead, by --config"
        )
    protocol = config.eval.protocol
    if protocol not in ("ss", "ms"):
        raise ConfigError(f"config.eval.protocol={protocol}: 'ss' or 'ms'")
    rule = config.eval[protocol]
    if not rule.ratios or min(rule.ratios) <= 0:
        raise ConfigError(f"config.eval.{protocol}.ratios={rule.ratios}: one or more, above 0")
    for key, choices in CHOICES.items():
        if rule[key] not in choices:
            known = " or ".join(map(repr, choices))
            raise ConfigError(f"config.eval.{protocol}.{key}={rule[key]}: {known}")
    return rule


def plan_views(hw: Hw, config) -> list[View]:
    """The views of an image of this size, in the order of the recipe, each of them once.

    The test size times each ratio, and their mirror images if the rule says so. Two views show the
    same where all sizes on the way are the same: ratios below 1 often end at the same shortest
    side.
    """
    rule = evaluation_rule(config)
    counts = Counter()
    for ratio in rule.ratios:
        scale_wh = transforms.scaled(config.data.test_scale_wh, ratio)
        if rule.resize == "short_side":
            sizes = [transforms.short_side_hw(hw, scale_wh, config.eval.crop_hw[0])]
        else:
            sizes = [transforms.resized_hw(hw, scale_wh)]
            sizes.append(transforms.multiple_hw(sizes[0], config.data.test_multiple))
        for mirrored in (False, True) if rule.flip else (False,):
            counts[tuple(dict.fromkeys(sizes)), mirrored] += 1
    smallest = (1, 1) if rule.pad == "none" else config.eval.crop_hw
    return [
        View(sizes, mirrored, tuple(map(max, sizes[-1], smallest)), weight)
        for (sizes, mirrored), weight in counts.items()
    ]


def resize(image: np.ndarray, sizes: tuple[Hw, ...]) -> np.ndarray:
    """An image at the last of these sizes, uint8 [h', w', 3]."""
    for hw in sizes:
        image = transforms.resize_to(image, hw)
    return image


def cut_window(resized: np.ndarray, view: View, top: int, left: int, hw: Hw, config) -> np.ndarray:
    """A window of a view as the network takes it: float32 [*hw, 3] in RGB, normalized.

    resized: the image at the size of the view, not mirrored yet.
    """
    shown = resized[:, ::-1] if view.mirrored else resized
    window = np.ascontiguousarray(shown[top : top + hw[0], left : left + hw[1]])
    if evaluation_rule(config).pad == "before_normalize":  # with black, not with the mean
        window = transforms.pad(window, hw, 0)
    return transforms.pad(transforms.normalize(window, config.data.mean, config.data.std), hw, 0)
