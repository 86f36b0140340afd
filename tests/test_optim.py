"""The optimizer: groups as in the originals, schedule, clipping, what is named when it breaks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from published import manifest_of
from reference_files import REFERENCE

from converters.rules import to_path
from jaxseg import optim

GROUPS = sorted(
    path
    for path in (REFERENCE / "internimage" / "optim").glob("*.json")
    if not path.stem.startswith("mask2former")  # not built yet
)


@pytest.mark.reference
@pytest.mark.parametrize("path", GROUPS, ids=lambda path: path.stem)
def test_rate_and_decay_of_every_parameter_are_those_of_the_original(path):
    recorded = json.loads(path.read_text())
    shapes = manifest_of(path.stem)["state_dict"]
    rules = optim.layer_id_rules(ConfigDict({"depths": recorded["paramwise_cfg"]["depths"]}))
    decay = recorded["paramwise_cfg"]["layer_decay_rate"]
    for name, group in recorded["params"].items():
        shape = shapes[name][1:]
        parameter = to_path(name, len(shape)).removeprefix("params/")
        scale = optim.learning_rate_scale(parameter, rules, decay)
        assert scale == pytest.approx(group["lr_scale"], rel=1e-6), name
        decays = optim.decays(parameter, np.empty(shape))
        assert decays == (group["weight_decay"] > 0), name


def test_parameter_without_a_layer_is_named():
    rules = optim.layer_id_rules(ConfigDict({"depths": (1, 1, 1, 1)}))
    with pytest.raises(ValueError, match="neck/kernel"):
        optim.learning_rate_scale("neck/kernel", rules, 0.9)


def test_schedule_is_polynomial_decay_times_warm_up():
    config = {"lr": 6e-5, "warmup_steps": 1500, "warmup_ratio": 1e-6, "power": 1.0}
    rate = optim.schedule(ConfigDict(config), 160_000)
    for t, expected in (
        (0, 6e-5 * 1e-6),
        (750, 6e-5 * (1 - 750 / 160_000) * (1 - 0.5 * (1 - 1e-6))),
        (1500, 6e-5 * (1 - 1500 / 160_000)),
        (80_000, 3e-5),
        (160_000, 0.0),
    ):
        assert float(rate(t)) == pytest.approx(expected, rel=1e-5)


def test_clipping_is_that_of_pytorch():
    gradients = {"a": jnp.array([3.0, 4.0])}
    clipped, _ = optim.clip_by_global_norm(1.0).update(gradients, None)
    np.testing.assert_allclose(clipped["a"], np.array([3, 4]) / (5 + 1e-6), rtol=1e-6)
    small, _ = optim.clip_by_global_norm(10.0).update(gradients, None)
    np.testing.assert_array_equal(small["a"], gradients["a"])


def test_first_tensor_that_is_not_finite_is_named():
    tree = {"a": jnp.ones(3), "b": {"kernel": jnp.array([1.0, jnp.nan])}, "c": jnp.array([jnp.inf])}
    norms = jax.jit(optim.squared_norms)(tree)
    assert optim.first_nonfinite(norms.tolist(), tree) == "b/kernel"
    assert optim.first_nonfinite([0.0, 1.0, 2.0], tree) is None
