"""Reads, checks and describes the setting that selects the kernels.

The setting is `config.model.kernels`. The environment variable JAXSEG_KERNELS overrides it.
"""

import os
from collections.abc import Mapping
from typing import Any

import pallas_kernels
from jaxseg.errors import ConfigError
from pallas_kernels import KernelChoice

VARIABLE = "JAXSEG_KERNELS"
SETTINGS = ("auto", "xla", "gpu", "tpu")


def kernel_setting(config: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the kernel setting from JAXSEG_KERNELS, or else from `config.model.kernels`.

    Args:
      config: the settings of the model. Old checkpoints have no key `kernels`, which means "auto".

    Returns:
      The setting, one of `SETTINGS`, and the name of its source.

    Raises:
      ConfigError: if the value is not one of `SETTINGS`.
    """
    from_variable = os.environ.get(VARIABLE)
    value = from_variable or config.get("kernels", "auto")
    origin = VARIABLE if from_variable else "config.model.kernels"
    if value not in SETTINGS:
        raise ConfigError(f"{origin}={value}: must be one of {', '.join(SETTINGS)}")
    return value, origin


def kernel_choice(config: Mapping[str, Any], deterministic: bool = False) -> KernelChoice:
    """Returns the choice of kernels that the modules of a model pass to `pallas_kernels`.

    Args:
      config: the settings of the model.
      deterministic: whether gradients must have the same bits in every run on a GPU.

    Raises:
      ConfigError: if the kernel setting is not one of `SETTINGS`.
    """
    value, _ = kernel_setting(config)
    return KernelChoice(None if value == "auto" else value, deterministic)


def check_kernels(config: Mapping[str, Any], platform: str) -> None:
    """Checks that explicitly selected kernels can run on the devices of a platform.

    Args:
      config: the settings of the model.
      platform: "cpu", "gpu" (or "cuda") or "tpu".

    Raises:
      ConfigError: if the selected kernels cannot run there, or if the setting is not one of
        `SETTINGS`. The message names the setting and the alternatives.
    """
    value, origin = kernel_setting(config)
    platform = "gpu" if platform == "cuda" else platform
    if value in ("gpu", "tpu") and value != platform:
        raise ConfigError(
            f"{origin}={value}: these kernels need a {value.upper()}, but the devices are of"
            f" platform {platform}; set it to auto or xla"
        )


def describe_kernels(config: Mapping[str, Any]) -> str:
    """Describes the kernel setting and its effect on these devices, such as "auto: XLA on cpu"."""
    value, origin = kernel_setting(config)
    where = pallas_kernels.platform()
    runs = f"XLA on {where}" if value == "xla" or where == "cpu" else f"kernels for {where}"
    return f"{value}: {runs}" + f" (from {origin})" * (origin == VARIABLE)
