"""Fills in the settings that follow from the training data, the same in all processes."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxseg.config import flatten_config, set_flat
from jaxseg.data.class_weights import (
    compute_class_weights,
    count_class_pixels,
    given_class_weights,
)
from jaxseg.data.fit import fit_settings, fitted_keys
from jaxseg.data.source import trained_on
from jaxseg.distributed import multihost
from jaxseg.recipes.listed import listed_names


def choose_from_data(config: ConfigDict, saved: Mapping[str, Any] | None):
    """Sets the weights of the classes and what `config.data.fit` names, in place.

    A run goes on with the settings that it began with, although its data may have changed.

    Args:
      config: the resolved config.
      saved: the config of the run's newest checkpoint, or None for a new run.

    Raises:
      ConfigError, DataError: as `find_class_weights` and `fit_settings` do.
    """
    if saved and saved["loss"]["class_weight"] == config.loss.class_weight:
        config.loss.class_weights = saved["loss"]["class_weights"]
    else:
        config.loss.class_weights = find_class_weights(config)
    if not fitted_keys(config):
        return
    if saved:
        # What was given at first and is not given now is a difference, which resuming refuses.
        chosen = listed_names(saved["data"].get("fit", ()))
        config.data.fit = tuple(key for key in fitted_keys(config) if key in chosen)
        known = flatten_config(saved)
        settings = {key: known[key] for key in config.data.fit}
    else:
        settings = multihost.result_of_process_0(lambda: fit_settings(config))
    set_flat(config, settings)


def describe_choice(config: ConfigDict) -> dict[str, str]:
    """Returns a row for the header of a run, with what was chosen from the data."""
    flat = flatten_config(config.to_dict())
    rows = [f"{key}={flat[key]}" for key in fitted_keys(config)]
    return {"chosen from the data": ", ".join(rows)} if rows else {}


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

    def compute():
        print(f"config.loss.class_weight={setting}: reading every label of {source}", flush=True)
        pixels = count_class_pixels(source, skip_corrupt=config.data.skip_corrupt)
        return compute_class_weights(setting, pixels)

    return tuple(multihost.result_of_process_0(compute))
