"""Fresh weights are distributed as those of the original."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from converters.rules import to_path
from jaxseg.models.segmentation_model import build_model, init_variables
from support.published import config_of
from support.reference_files import REFERENCE

pytestmark = pytest.mark.long

STATISTICS = [
    pytest.param(path, id=path.stem, marks=pytest.mark.full)
    for path in sorted((REFERENCE / "internimage" / "init_stats").glob("*.json"))
]


@pytest.mark.reference
@pytest.mark.parametrize("path", STATISTICS)
def test_initial_weights_are_distributed_as_in_the_original(path):
    model = build_model(config_of(path.stem).model)
    variables = jax.jit(lambda: init_variables(model, jax.random.key(0), (64, 64)))()
    values = traverse_util.flatten_dict(variables, sep="/")
    recorded = json.loads(path.read_text())
    # The backbone keeps what its constructor draws (and loads weights over it); heads are redrawn.
    expected = {k: v for k, v in recorded["constructor"].items() if k.startswith("backbone.")}
    expected |= {k: v for k, v in recorded["after_init_weights"].items() if "_head." in k}
    assert len(expected) == len(recorded["after_init_weights"])
    for name, statistics in expected.items():
        if name.endswith("num_batches_tracked"):
            continue
        value = np.asarray(values[to_path(name, len(statistics["shape"]))])
        std = statistics["std"]
        if statistics["min"] == -2.0:
            # PyTorch's truncated normal can give one value at its very bound, 100 standard
            # deviations out; taken back out here.
            std = np.sqrt(std**2 - 4 / value.size)
        # Two samples of one distribution: means within 5 standard errors of their difference,
        # standard deviations likewise (for a normal; a uniform is closer).
        error = std * np.sqrt(2 / value.size)
        assert abs(value.mean() - statistics["mean"]) <= 5 * error + 1e-12, name
        assert abs(value.std() - std) <= 5 * error / np.sqrt(2) + 1e-12, name
        assert (value.min() == value.max()) == (std == 0), name
