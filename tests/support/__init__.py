"""What tests share."""

from collections.abc import Mapping
from typing import Any

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from ml_collections import ConfigDict

# Wherever JAX takes an array, it takes one of NumPy too.
jaxtyping.Array = jax.Array | np.ndarray
# A ConfigDict has all that a mapping has, but ml_collections does not register it as one.
MAPPINGS = {Mapping[str, kind]: Mapping[str, kind] | ConfigDict for kind in (Any, int)}
TYPES = BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict(MAPPINGS))
# Trees in the shape of these hold arrays, or the shapes or the shardings of arrays.
TREES = ("TrainState", "ModelOutput", "MaskPredictions")


def checked(function):
    """Checks the calls of a function of jaxseg or pallas_kernels (`addopts` in pyproject.toml)."""
    if function.__qualname__ in [f"{tree}.__init__" for tree in TREES]:
        return function
    return beartype(function, conf=TYPES)
