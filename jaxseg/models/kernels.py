"""The setting of the kernels for deformable sampling: config, environment variable, words."""

import os
from collections.abc import Mapping
from typing import Any

import pallas_kernels
from jaxseg.errors import ConfigError
from pallas_kernels import KernelChoice

VARIABLE = "JAXSEG_KERNELS"
SETTINGS = ("auto", "xla", "gpu", "tpu")


def kernel_setting(config: Mapping[str, Any]) -> tuple[str, str]:
    """What the environment variable JAXSEG_KERNELS says, or else `config.model.kernels`.

    Args:
      config: the settings of the model; without `kernels`, as in old checkpoints, it is "auto".

    Returns:
      The setting, one of `SETTINGS`, and the name of where it comes from.

    Raises:
      ConfigError: for a value that does not exist.
    """
    from_variable = os.environ.get(VARIABLE)
    value = from_variable or config.get("kernels", "auto")
    origin = VARIABLE if from_variable else "config.model.kernels"
    if value not in SETTINGS:
        raise ConfigError(f"{origin}={value}: it can be {', '.join(SETTINGS)}")
    return value, origin


def kernel_choice(config: Mapping[str, Any], deterministic: bool = False) -> KernelChoice:
    """What the modules of a model pass to `pallas_kernels`.

    Raises:
      ConfigError: for a value that does not exist.
    """
    value, _ = kernel_setting(config)
    return KernelChoice(None if value == "auto" else value, deterministic)


def check_kernels(config: Mapping[str, Any], platform: str):
    """Refuses kernels that are named and cannot run on devices of this platform.

    Args:
      config: the settings of the model.
      platform: "cpu", "gpu" (or "cuda") or "tpu".

    Raises:
      ConfigError: naming the setting and what it can be.
    """
    value, origin = kernel_setting(config)
    platform = "gpu" if platform == "cuda" else platform
    if value in ("gpu", "tpu") and value != platform:
        raise ConfigError(
            f"{origin}={value}: these kernels need a {value.upper()}, but the devices are of"
            f" platform {platform}; set it to auto or xla"
        )


def describe_kernels(config: Mapping[str, Any]) -> str:
    """The setting and what it means on the devices here, such as "auto: XLA on cpu"."""
    value, origin = kernel_setting(config)
    where = pallas_kernels.platform()
    runs = f"XLA on {where}" if value == "xla" or where == "cpu" else f"kernels for {where}"
    return f"{value}: {runs}" + f" (from {origin})" * (origin == VARIABLE)
