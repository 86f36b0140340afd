"""Plans the views of an image for evaluation: sizes, mirror images, padding.

This module handles pixels only. `jaxseg.inference` averages the scores of the views.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from jaxseg.data import transforms
from jaxseg.errors import ConfigError

CHOICES = {
    "resize": ("within", "short_side", "dinov3"),
    "pad": ("none", "before_normalize", "after_normalize"),
}
Hw = tuple[int, int]


class View(NamedTuple):
    """Describes one way to show an image to the network.

    Attributes:
      sizes: the (height, width) pairs that the image is resized to, one after the other.
      mirrored: whether it is mirrored left to right, before it is padded.
      padded_hw: the (height, width) that it is padded to, at the bottom and on the right.
      weight: how many of the recipe's views are identical to this one.
      smooth: whether Pillow resizes, with anti-aliasing, and not OpenCV without.
    """

    sizes: tuple[Hw, ...]
    mirrored: bool
    padded_hw: Hw
    weight: int
    smooth: bool = False

    @property
    def hw(self) -> Hw:
        """The (height, width) without padding."""
        return self.sizes[-1]


def evaluation_rule(config):
    """Returns the settings of the protocol that `config.eval.protocol` names.

    Raises:
      ConfigError: if the protocol is missing or is neither "ss" nor "ms", or if its settings are
        invalid.
    """
    if "protocol" not in config.eval:
        raise ConfigError(
            "config.eval has no protocol: the config is of an earlier jaxseg. Pass the recipe's"
            " current file to --mode eval with --config."
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
    """Plans the distinct views of an image of this size, in the order of the recipe.

    The recipe has a view of the test size times each ratio, and its mirror image if the rule asks
    for it. Two views are identical if all their sizes, intermediate ones too, are equal. Ratios
    below 1 often end at the same shortest side.

    Args:
      hw: the image's (height, width).

    Raises:
      ConfigError: as in `evaluation_rule`.
    """
    rule = evaluation_rule(config)
    counts = Counter()
    for ratio in rule.ratios:
        scale_wh = transforms.scaled(config.data.test_scale_wh, ratio)
        if rule.resize == "dinov3":
            sizes = [transforms.exact_short_side_hw(hw, min(config.data.test_scale_wh), ratio)]
        elif rule.resize == "short_side":
            sizes = [transforms.short_side_hw(hw, scale_wh, config.eval.crop_hw[0])]
        else:
            sizes = [transforms.resized_hw(hw, scale_wh)]
            sizes.append(transforms.multiple_hw(sizes[0], config.data.test_multiple))
        for mirrored in (False, True) if rule.flip else (False,):
            counts[tuple(dict.fromkeys(sizes)), mirrored] += 1
    least_h, least_w = (1, 1) if rule.pad == "none" else config.eval.crop_hw
    found = []
    for (sizes, mirrored), weight in counts.items():
        padded_hw = max(sizes[-1][0], least_h), max(sizes[-1][1], least_w)
        found.append(View(sizes, mirrored, padded_hw, weight, rule.resize == "dinov3"))
    return found


def resize(image: np.ndarray, sizes: tuple[Hw, ...], smooth: bool = False) -> np.ndarray:
    """Resizes an image to each of the sizes in turn, and returns uint8 [h', w', 3].

    Args:
      image: uint8 [h, w, 3].
      sizes: (height, width) pairs.
      smooth: as in `View`.
    """
    for hw in sizes:
        image = (transforms.resize_smoothly if smooth else transforms.resize_to)(image, hw)
    return image


def cut_window(resized: np.ndarray, view: View, top: int, left: int, hw: Hw, config) -> np.ndarray:
    """Cuts a window out of a view: float32 [*hw, 3] in RGB, normalized, as the network takes it.

    Args:
      resized: the image at the size of the view, not mirrored yet.
      top: the window's first row in the view.
      left: the window's first column in the view.
      hw: the window's (height, width).
    """
    shown = resized[:, ::-1] if view.mirrored else resized
    window = np.ascontiguousarray(shown[top : top + hw[0], left : left + hw[1]])
    if evaluation_rule(config).pad == "before_normalize":  # pads with black, not with the mean
        window = transforms.pad(window, hw, 0)
    return transforms.pad(transforms.normalize(window, config.data.mean, config.data.std), hw, 0)
