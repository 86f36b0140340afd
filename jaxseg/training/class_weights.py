"""Finds the weights of the classes in the loss, the same in all processes."""

import json

from ml_collections import ConfigDict

from jaxseg.data.class_weights import (
    compute_class_weights,
    count_class_pixels,
    given_class_weights,
)
from jaxseg.data.source import trained_on
from jaxseg.distributed import multihost


def find_class_weights(config: ConfigDict) -> tuple[float, ...]:
    """Returns the weights that `config.loss.class_weight` asks for; none if it is empty.

    For a rule, process 0 reads every label of the training data.

    Raises:
      ConfigError: if the setting is neither a rule nor a number for each class.
      DataError: if labels are missing or faulty.
      JaxsegError: in the other processes, if process 0 raises one of these.
    """
    setting, source = config.loss.class_weight, trained_on(config.data)
    given = given_class_weights(setting, source.dataset.classes)
    if given is not None:
        return given
    found = []

    def compute():
        print(f"config.loss.class_weight={setting}: reading every label of {source}", flush=True)
        pixels = count_class_pixels(source, skip_corrupt=config.data.skip_corrupt)
        found.extend(compute_class_weights(setting, pixels))

    multihost.on_process_0(compute)
    return tuple(json.loads(multihost.text_of_process_0(json.dumps(found))))
