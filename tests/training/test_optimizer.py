"""The optimizer: schedule, clipping, groups at work, what is named when it breaks."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxseg.recipes import base
from jaxseg.training.finite import first_nonfinite
from jaxseg.training.optimizer import (
    clip_by_global_norm,
    learning_rate_schedule,
    make_optimizer,
    squared_norms,
)
from support.reference_files import REFERENCE


def test_schedule_is_polynomial_decay_times_warm_up():
    config = {"lr": 6e-5, "warmup_steps": 1500, "warmup_ratio": 1e-6, "power": 1.0}
    config["schedule"] = "polynomial"
    rate = learning_rate_schedule(ConfigDict(config), 160_000)
    for t, expected in (
        (0, 6e-5 * 1e-6),
        (750, 6e-5 * (1 - 750 / 160_000) * (1 - 0.5 * (1 - 1e-6))),
        (1500, 6e-5 * (1 - 1500 / 160_000)),
        (80_000, 3e-5),
        (160_000, 0.0),
    ):
        assert float(rate(t)) == pytest.approx(expected, rel=1e-5)


SCHEDULES = sorted(REFERENCE.glob("*/optim/lr_schedule.json"))


@pytest.mark.reference
@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.parts[-3])
def test_schedule_is_that_of_the_original(path):
    recorded = json.loads(path.read_text())
    policy = recorded.pop("policy")
    for name, rates in recorded.items():
        *warmup, steps = map(int, re.findall(r"\d+", name))  # max_iters_STEPS, warmupW_maxSTEPS
        config = {
            "lr": 1.0,
            "warmup_steps": warmup[0] if warmup else policy["warmup_iters"],
            "warmup_ratio": policy["warmup_ratio"],
            "power": policy["power"],
            "schedule": "polynomial",
        }
        rate = learning_rate_schedule(ConfigDict(config), steps)
        for t, expected in rates.items():
            assert float(rate(int(t))) == pytest.approx(expected, rel=1e-6), (name, t)


def test_clipping_is_that_of_pytorch():
    gradients = {"a": jnp.array([3.0, 4.0])}
    clipped, _ = clip_by_global_norm(1.0).update(gradients, None)
    np.testing.assert_allclose(clipped["a"], np.array([3, 4]) / (5 + 1e-6), rtol=1e-6)
    small, _ = clip_by_global_norm(10.0).update(gradients, None)
    np.testing.assert_array_equal(small["a"], gradients["a"])


@pytest.mark.usefixtures("standard_promotion")
def test_rate_and_decay_of_a_group_multiply_those_of_the_recipe():
    config = base.recipe("", {"": {"optim": {"lr": 0.1, "weight_decay": 0.01}}}).optim
    config.custom_keys = (("head", 10.0, 1.0), ("norm", 1.0, 0.0))
    optimizer = make_optimizer(config, ConfigDict(), steps=100)
    params = {"head": jnp.full(2, 3.0), "norm": jnp.full(2, 3.0), "neck": jnp.full(2, 3.0)}
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # The first step of Adam is the sign of the gradient, to the digits of 1 - 0.999 in float32.
    rate = 0.1 * config.warmup_ratio
    np.testing.assert_allclose(updates["head"], -10 * rate * (1 + 0.01 * 3), rtol=1e-5)
    np.testing.assert_allclose(updates["norm"], -rate, rtol=1e-5)
    np.testing.assert_allclose(updates["neck"], -rate * (1 + 0.01 * 3), rtol=1e-5)


def test_first_tensor_that_is_not_finite_is_named():
    tree = {"a": jnp.ones(3), "b": {"kernel": jnp.array([1.0, jnp.nan])}, "c": jnp.array([jnp.inf])}
    norms = jax.jit(squared_norms)(tree)
    assert first_nonfinite(norms.tolist(), tree) == "b/kernel"
    assert first_nonfinite([0.0, 1.0, 2.0], tree) is None
