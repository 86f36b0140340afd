"""Weights of classes in a loss, given or computed from the classes' shares of the pixels."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Integer

from jaxseg.data.samples import read_label
from jaxseg.data.source import Source
from jaxseg.errors import ConfigError, CorruptFileError, DataError

THREADS = 8

# By name: the weight of a class from its share.
RULES: Mapping[str, Callable[[Float[np.ndarray, " k"]], Float[np.ndarray, " k"]]] = {
    "inverse": lambda share: 1 / share,
    "enet": lambda share: 1 / np.log(1.02 + share),  # arXiv:1606.02147, section 5.2
}


def given_class_weights(setting: str, classes: tuple[str, ...]) -> tuple[float, ...] | None:
    """Returns the weights that `config.loss.class_weight` holds, or None if it names a rule.

    Args:
      setting: a name in `RULES`, or a number for each class, separated by commas; or nothing.
      classes: the class names.

    Raises:
      ConfigError: for another name, or numbers that do not fit.
    """
    if not setting:
        return ()
    if setting in RULES:
        return None
    try:
        weights = tuple(float(number) for number in setting.split(","))
    except ValueError as error:
        raise ConfigError(
            f"config.loss.class_weight={setting}: must be {', '.join(RULES)}, or a number for each"
            f" of the {len(classes)} classes"
        ) from error
    valid = np.isfinite(weights).all() and min(weights) >= 0 and sum(weights) > 0
    if len(weights) != len(classes) or not valid:
        raise ConfigError(
            f"config.loss.class_weight={setting}: {len(classes)} numbers of 0 or more, not all 0,"
            f" are needed, for {', '.join(classes)}"
        )
    return weights


def count_class_pixels(source: Source, *, skip_corrupt: bool) -> Integer[np.ndarray, " k"]:
    """Reads every label and returns the number of pixels of each class.

    Args:
      source: the training data.
      skip_corrupt: whether labels that cannot be read are left out, as in training.

    Raises:
      CorruptFileError: if a label cannot be read, unless such labels are left out.
      DataError: if labels are missing or faulty, or if none of them has a pixel of a class.
    """
    classes = len(source.dataset.classes)

    def count(sample):
        try:
            return np.bincount(read_label(sample).ravel(), minlength=256)[:classes]
        except CorruptFileError:
            if not skip_corrupt:
                raise
            return np.zeros(classes, np.int64)

    pixels = np.zeros(classes, np.int64)
    with ThreadPoolExecutor(THREADS) as threads:
        for counts in threads.map(count, source.samples()):
            pixels += counts
    if not pixels.any():
        raise DataError(f"{source}: no label has a pixel of any class; jaxseg show lists them")
    return pixels


def compute_class_weights(rule: str, pixels: Integer[np.ndarray, " k"]) -> tuple[float, ...]:
    """Returns the weight of each class, with a mean of 1 over the pixels of all classes.

    A class without a pixel has the weight 1.

    Args:
      rule: a name in `RULES`.
      pixels: the number of pixels of each class.
    """
    share = pixels / pixels.sum()
    present = share > 0
    weights = np.ones(len(share))
    weights[present] = RULES[rule](share[present])
    weights[present] /= np.sum(share * weights)
    return tuple(round(float(weight), 6) for weight in weights)
