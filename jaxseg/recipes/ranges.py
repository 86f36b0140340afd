"""The ranges of numbers among the settings; values outside fail late or train nonsense."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxseg.errors import ConfigError


class Range(NamedTuple):
    """The values that a number may have, from `low` to `high`.

    Attributes:
      low: the least value.
      high: the largest value.
      without_low: whether `low` itself is not allowed.
      without_high: whether `high` itself is not allowed.
    """

    low: float
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.without_low else self.low <= value
        return above and (value < self.high if self.without_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.without_low else f"{self.low:g} or more"
        return (
            f"{'above' if self.without_low else 'from'} {self.low:g}"
            f" {'and below' if self.without_high else 'to'} {self.high:g}"
        )


COUNT, COUNT_OR_NONE, AMOUNT, POSITIVE = (
    Range(1),
    Range(0),
    Range(0.0),
    Range(0.0, without_low=True),
)
SHARE, RATE = Range(0.0, 1.0), Range(0.0, 1.0, without_high=True)
RANGES = {
    "batch_size": COUNT,
    "steps": COUNT,
    "seed": COUNT_OR_NONE,
    "log_steps": COUNT,
    "checkpoint.every_steps": COUNT,
    "checkpoint.keep": COUNT,
    "data.cat_max_ratio": SHARE,
    "data.flip_probability": SHARE,
    "data.class_crop_probability": SHARE,
    "data.prefetch": COUNT_OR_NONE,
    "data.ratio_range": POSITIVE,
    "data.scale_wh": COUNT,
    "data.share_seed": COUNT_OR_NONE,
    "data.test_multiple": COUNT,
    "data.test_scale_wh": COUNT,
    "data.val_share": RATE,
    "data.workers": COUNT_OR_NONE,
    "eval.every_steps": COUNT,
    "eval.images_per_device": COUNT,
    "eval.ms.ratios": POSITIVE,
    "eval.pictures": COUNT_OR_NONE,
    "eval.ss.ratios": POSITIVE,
    "loss.auxiliary_weight": AMOUNT,
    "loss.class_weights": AMOUNT,
    "loss.focal_gamma": AMOUNT,
    "loss.label_smoothing": RATE,
    "loss.mask2former.importance_sample_ratio": SHARE,
    "loss.mask2former.max_targets": COUNT,
    "loss.mask2former.num_points": COUNT,
    "loss.mask2former.oversample_ratio": Range(1.0),
    "loss.ohem_kept": SHARE,
    "loss.ohem_threshold": SHARE,
    "loss.tversky": AMOUNT,
    "model.backbone.drop_path": RATE,
    "optim.accumulation": COUNT,
    "optim.betas": RATE,
    "optim.clip_norm": AMOUNT,
    "optim.ema_decay": RATE,
    "optim.layer_decay": POSITIVE,
    "optim.lora.alpha": POSITIVE,
    "optim.lora.rank": COUNT_OR_NONE,
    "optim.lr": AMOUNT,
    "optim.power": AMOUNT,
    "optim.warmup_ratio": AMOUNT,
    "optim.warmup_steps": COUNT_OR_NONE,
    "optim.weight_decay": AMOUNT,
    "profile.after": COUNT_OR_NONE,
    "profile.steps": COUNT_OR_NONE,
}


def check_ranges(settings: Mapping[str, Any]):
    """Checks that every number is in its range.

    Args:
      settings: the settings of a config with dotted keys.

    Raises:
      ConfigError: for the first value outside its range.
    """
    for key, allowed in RANGES.items():
        value = settings.get(key)
        for number in value if isinstance(value, tuple | list) else (value,):
            if number is not None and number not in allowed:
                raise ConfigError(f"config.{key}={value}: must be {allowed}")
