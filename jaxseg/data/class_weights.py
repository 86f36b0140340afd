"""Weights of classes in a loss, given or computed from the classes' shares of the pixels."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Integer

from jaxseg.data.source import Source
from jaxseg.data.survey import survey
from jaxseg.errors import ConfigError, DataError, first_few

# By name: the weight of a class from its share.
RULES: Mapping[str, Callable[[Float[np.ndarray, " k"]], Float[np.ndarray, " k"]]] = {
    "inverse": lambda share: 1 / share,
    "enet": lambda share: 1 / np.log(1.02 + share),  # arXiv:1606.02147, section 5.2
}


def find_class_weights(setting: str, source: Source) -> tuple[float, ...]:
    """Returns the weights that `config.loss.class_weight` asks for; none if it is empty.

    For a rule, every label of the training data is read.

    Args:
      setting: a name in `RULES`, or a number for each class, separated by commas.
      source: the training data.

    Raises:
      ConfigError: for another name, or another count of numbers.
      DataError: if labels are missing or faulty.
    """
    if not setting:
        return ()
    classes = source.dataset.classes
    if setting not in RULES:
        return _given(setting, classes)
    found = survey(source.dataset, source.pairs())
    if found.faults:
        raise DataError(
            f"config.loss.class_weight={setting} reads every label, and {len(found.faults)} faults"
            f" were found:{first_few(found.faults)}"
        )
    return compute_class_weights(setting, found.class_pixels())


def _given(setting, classes):
    try:
        weights = tuple(float(number) for number in setting.split(","))
    except ValueError as error:
        raise ConfigError(
            f"config.loss.class_weight={setting}: {', '.join(RULES)}, or numbers"
        ) from error
    if len(weights) != len(classes) or min(weights) < 0:
        raise ConfigError(
            f"config.loss.class_weight={setting}: {len(classes)} numbers of 0 or more are needed,"
            f" for {', '.join(classes)}"
        )
    return weights


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
