"""Splits the parameters into those that are trained and those that keep their values.

`config.optim.freeze` names what is frozen. With low-rank adaptation, the adapted kernels are frozen
too, while A and B are always trained.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxseg.errors import ConfigError, first_few
from jaxseg.models import lora
from jaxseg.parameter_paths import begins_with, by_path
from jaxseg.recipes.listed import listed_names


def frozen_patterns(optim: ConfigDict) -> tuple[str, ...]:
    """Returns the patterns of the parameters that `config.optim` freezes.

    They match the beginnings of paths. `is_frozen` says what is excepted.

    Raises:
      ConfigError: for a regular expression that is not valid.
    """
    patterns = listed_names(optim.freeze)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"config.optim.freeze={optim.freeze}: {error} in the regular expression {pattern!r}"
            ) from error
    adapted = (f"(?:{optim.lora.layers})/kernel", f".*/{lora.SCALE}") if optim.lora.rank else ()
    return (*patterns, *adapted)


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Tells whether a parameter is frozen. A and B of `jaxseg.models.lora` are never frozen.

    Args:
      path: the path of the parameter.
      patterns: regular expressions, of which one must match the beginning of the path, such as
        "backbone/blocks_3/attn/qkv/kernel".
    """
    adapts = path.rpartition("/")[2] in (lora.FIRST, lora.SECOND)
    return begins_with(path, patterns) and not adapts


def split_frozen(params: Mapping[str, Any], patterns: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Returns the trained and the frozen parameters, each as nested dicts.

    Args:
      params: the parameters, as nested dicts.
      patterns: say what is frozen, as in `is_frozen`.
    """
    return (params, {}) if not patterns else _split(params, patterns, "")


def _split(params, patterns, parent):
    trained, frozen = {}, {}
    for name, value in params.items():
        path = f"{parent}{name}"
        if isinstance(value, Mapping):
            parts = _split(value, patterns, f"{path}/")
            for whole, part in zip((trained, frozen), parts, strict=True):
                if part:
                    whole[name] = part
        else:
            (frozen if is_frozen(path, patterns) else trained)[name] = value
    return trained, frozen


def join_frozen(trained: Any, frozen: Mapping[str, Any]) -> Any:
    """Returns the parameters that `split_frozen` split."""
    if not frozen:
        return trained
    joined = dict(trained)
    for name, value in frozen.items():
        joined[name] = join_frozen(joined[name], value) if name in joined else value
    return joined


def cast_frozen(params: Any, optim: ConfigDict) -> Any:
    """Returns the parameters with the frozen ones in the type `config.optim.frozen_dtype`.

    Args:
      params: the parameters, as nested dicts.
      optim: `config.optim`.

    Raises:
      ConfigError: if the type is neither float32 nor bfloat16.
    """
    if optim.frozen_dtype not in ("float32", "bfloat16"):
        raise ConfigError(
            f"config.optim.frozen_dtype={optim.frozen_dtype}: must be float32 or bfloat16"
        )
    trained, frozen = split_frozen(params, frozen_patterns(optim))
    return join_frozen(trained, jax.tree.map(lambda x: x.astype(optim.frozen_dtype), frozen))


def check_frozen(params: Any, patterns: Sequence[str]) -> None:
    """Checks `config.optim.freeze`.

    Args:
      params: the parameters, or their shapes.
      patterns: the setting.

    Raises:
      ConfigError: if a pattern matches no parameter, or if nothing is left to train.
    """
    paths = list(by_path(params))
    for pattern in patterns:
        if not any(begins_with(path, [pattern]) for path in paths):
            raise ConfigError(
                f"config.optim.freeze: no parameter begins with {pattern!r}; the first of"
                f" {len(paths)} are{first_few(paths)}"
            )
    if patterns and all(is_frozen(path, patterns) for path in paths):
        raise ConfigError("config.optim.freeze: all parameters are frozen, so nothing would train")
