"""Chooses settings of a recipe from a user's own data: sizes of images, and how many there are.

`config.data.fit` names the settings that are chosen. A setting that the user gives is not.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxseg.data.decoding import pictures
from jaxseg.data.source import trained_on
from jaxseg.errors import ConfigError, CorruptFileError
from jaxseg.recipes.listed import listed_names

MEASURED = 500  # images, evenly over all of them
MULTIPLE = 32
SHORTEST, LONGEST, LARGEST_CROP = 256, 1024, 512
EPOCHS = 100
FEWEST_STEPS, MOST_STEPS = 1000, 40_000
RECIPE_BATCH = 16  # that the rates of the recipes are for


def fitted_keys(config: ConfigDict) -> tuple[str, ...]:
    """Returns the keys in `config.data.fit`; published recipes have none."""
    return listed_names(config.data.get("fit", ()))


def fit_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of the settings that `config.data.fit` names, by flat key.

    - Images keep the median of their shorter sides, rounded to a multiple of 32 from 256 to 1024.
      The longer side is not bounded, up to four times the shorter one.
    - Crops and windows are squares of that side, of at most 512 pixels.
    - Every image is seen about 100 times, in 1000 to 40 000 steps. A tenth of the steps lie between
      two evaluations, and a twentieth is the warm-up.
    - The learning rate is that of the recipe, times the batch size / 16.

    Args:
      config: the recipe of a user's own data.

    Raises:
      ConfigError: for a key that is never chosen.
      DataError: if images or labels are missing, or the header of an image cannot be read, unless
        such images are skipped.
    """
    wanted = fitted_keys(config)
    if not wanted:
        return {}
    samples = trained_on(config.data).samples()
    measured = samples[:: -(-len(samples) // MEASURED)]
    short = statistics.median(_shorter_sides(measured, config.data.skip_corrupt))
    side = min(max(round(short / MULTIPLE) * MULTIPLE, SHORTEST), LONGEST)
    crop, scale = min(side, LARGEST_CROP), (4 * side, side)
    steps = round(EPOCHS * len(samples) / config.batch_size / 100) * 100
    steps = config.steps if "steps" not in wanted else min(max(steps, FEWEST_STEPS), MOST_STEPS)
    chosen: Mapping[str, Any] = {
        "data.scale_wh": scale,
        "data.crop_hw": (crop, crop),
        "data.test_scale_wh": scale,
        "eval.crop_hw": (crop, crop),
        "eval.stride_hw": (2 * crop // 3, 2 * crop // 3),
        "steps": steps,
        "eval.every_steps": max(steps // 10, 1),
        "optim.warmup_steps": min(config.optim.warmup_steps, steps // 20),
        "optim.lr": config.optim.lr * config.batch_size / RECIPE_BATCH,
    }
    if unknown := [key for key in wanted if key not in chosen]:
        raise ConfigError(
            f"config.data.fit={','.join(unknown)}: only {', '.join(chosen)} can be chosen"
        )
    return {key: chosen[key] for key in wanted}


def _shorter_sides(samples, skip_corrupt):
    sides, faults = [], []
    for sample in samples:
        try:
            sides.append(min(pictures.image_hw(sample.image)))
        except CorruptFileError as error:
            faults.append(error)
    if faults and not (skip_corrupt and sides):
        raise faults[0]
    return sides
