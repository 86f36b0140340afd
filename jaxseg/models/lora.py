"""Low-rank adaptation (LoRA) of linear layers: y = x·(W + scale·A·B), where W stays as it is.

Hu and others, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). A and B are
leaves beside the kernel W. `layers.kernel_param` adds their product if they are there. B is zero at
first, so that the adapted model begins as the original.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.errors import ConfigError
from jaxseg.parameter_paths import by_path, with_leaves

LEAVES = FIRST, SECOND, SCALE = "lora_a", "lora_b", "lora_scale"


def is_low_rank(path: str) -> bool:
    """Tells whether a path is that of A, B or the scale of a layer."""
    return path.rpartition("/")[2] in LEAVES


def kernel_of(path: str) -> str:
    """Returns the path of the kernel that A, B or the scale at this path adapts."""
    return f"{path.rpartition('/')[0]}/kernel"


def adapted_kernels(paths: Any, layers: str) -> list[str]:
    """Returns the paths of the kernels that a setting names.

    Args:
      paths: the paths of all parameters.
      layers: a regular expression that matches paths of layers as a whole, such as
        "backbone/blocks_[0-9]+/attn/(qkv|proj)".

    Raises:
      ConfigError: if there are none, or the regular expression is not valid.
    """
    try:
        pattern = re.compile(f"(?:{layers})/kernel")
    except re.error as error:
        raise ConfigError(
            f"config.optim.lora.layers={layers}: {error} in this regular expression"
        ) from error
    found = [path for path in paths if pattern.fullmatch(path)]
    if not found:
        raise ConfigError(f"config.optim.lora.layers: no linear layer is named {layers!r}")
    return found


def add_low_rank(params: Any, rng: jax.Array, settings: Mapping[str, Any]) -> Any:
    """Returns the parameters with A, B and scale beside each adapted kernel.

    A is drawn as PyTorch draws the weights of a linear layer, and the scale is alpha / rank, as in
    the paper's code.

    Args:
      params: the parameters, as nested dicts.
      rng: the random key of A.
      settings: `config.optim.lora`: rank, alpha and layers.

    Raises:
      ConfigError: if no layer is adapted, or one is not linear.
    """
    leaves, rank = by_path(params), settings["rank"]
    added = {}
    for number, path in enumerate(adapted_kernels(leaves, settings["layers"])):
        kernel = leaves[path]
        if kernel.ndim != 2:
            raise ConfigError(
                f"config.optim.lora.layers: {path} has the shape {kernel.shape}; only linear"
                " layers are adapted"
            )
        inputs, outputs = kernel.shape
        layer, bound = path.removesuffix("kernel"), inputs**-0.5
        key = jax.random.fold_in(rng, number)
        added[layer + FIRST] = jax.random.uniform(key, (inputs, rank), jnp.float32, -bound, bound)
        added[layer + SECOND] = jnp.zeros((rank, outputs))
        added[layer + SCALE] = jnp.float32(settings["alpha"] / rank)
    return with_leaves(params, added)


def split_low_rank(params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters of the model itself, and A, B and scale, each as nested dicts."""
    leaves = by_path(params)
    low_rank = {path: leaf for path, leaf in leaves.items() if is_low_rank(path)}
    own = {path: leaf for path, leaf in leaves.items() if path not in low_rank}
    return with_leaves({}, own), with_leaves({}, low_rank)


def product(
    first: Float[Array, "n r"], second: Float[Array, "r m"], scale: Float[Array, ""]
) -> Float[Array, "n m"]:
    """Returns what is added to a kernel, scale·A·B."""
    return scale * jnp.matmul(first, second, precision=lax.Precision.HIGHEST)


def merge_low_rank(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Adds scale·A·B to the kernels and leaves A, B and scale out.

    Args:
      leaves: arrays by path.
    """
    merged = {path: leaf for path, leaf in leaves.items() if not is_low_rank(path)}
    for path in leaves:
        if path.endswith(FIRST):
            layer = path.removesuffix(FIRST)
            added = product(*(leaves[layer + name] for name in LEAVES))
            merged[layer + "kernel"] = leaves[layer + "kernel"] + added
    return merged
