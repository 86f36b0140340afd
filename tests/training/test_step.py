"""One step: moving average, steps that are not finite, bfloat16, other platforms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.segmentation_model import build_model
from jaxseg.training.finite import first_nonfinite
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state
from jaxseg.training.step import make_train_step
from support.tiny import smallest_config

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.long]


@functools.cache
def make(dtype="float32"):
    config = smallest_config()
    config.optim.ema_decay, config.model.dtype, config.batch_size = 0.9, dtype, 2
    model = build_model(config.model)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    state = jax.jit(lambda: init_state(config, model, optimizer))()
    # Not in the middle of the warm-up's first, nearly still, step.
    state = state.replace(step=jnp.int32(5))
    # A step that is traced again, and so compiled again, is an error.
    step = chex.assert_max_traces(make_train_step(config, model, optimizer), n=1)
    return state, jax.jit(step)


def batch():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 64, 64, 3)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 19, (2, 64, 64)).astype(np.int32)}


def test_moving_average_follows_the_parameters():
    state, step = make()
    first, _ = step(state, batch())
    second, _ = step(first, batch())
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, first.ema, second.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), second.ema, expected
    )
    assert second.variables()["params"] is second.ema


def test_step_is_compiled_once_for_every_state_and_batch_of_a_run():
    state, step = make()
    for seed in range(3):
        state, _ = step(state, jax.tree.map(lambda x, seed=seed: x + seed % 2, batch()))
    # As `put_batch` and a restored checkpoint have them: arrays on the device.
    step(jax.tree.map(jnp.asarray, jax.device_get(state)), jax.tree.map(jnp.asarray, batch()))


def test_step_that_is_not_finite_leaves_the_state_as_it_was():
    state, step = make()
    broken = batch()
    broken["image"][0, 0, 0, 0] = np.nan
    after, logs = step(state, broken)
    assert not np.isfinite(logs["loss"])
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert first_nonfinite(logs["norms"].tolist(), state.params)


def test_pixels_labeled_ignore_do_not_train():
    state, step = make()
    ignored = batch()
    ignored["label"][:] = 255
    _, logs = step(state, ignored)
    assert float(logs["loss"]) == 0.0
    assert float(logs["gradient_norm"]) == 0.0


def test_bfloat16_computes_nearly_the_same_with_float32_parameters():
    state, step = make()
    low_state, low_step = make("bfloat16")
    _, logs = step(state, batch())
    after, low_logs = low_step(low_state, batch())
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    # Eight bits of mantissa over some twenty layers.
    np.testing.assert_allclose(low_logs["loss"], logs["loss"], rtol=0.01)
    np.testing.assert_allclose(low_logs["gradient_norm"], logs["gradient_norm"], rtol=0.1)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_step_lowers_for_accelerators(platform):
    state, step = make("bfloat16")
    lowered = step.trace(state, batch()).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.dot_general" in lowered
    assert "bf16" in lowered
