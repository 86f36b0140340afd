"""Frozen parameters: no gradients, no moments, no statistics, and less to compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import load_config
from jaxseg.errors import ConfigError
from jaxseg.models.segmentation_model import (
    apply_model,
    build_model,
    init_variables,
    variable_shapes,
)
from jaxseg.parameter_paths import by_path
from jaxseg.training.freezing import check_frozen, frozen_patterns, join_frozen, split_frozen
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state
from jaxseg.training.step import make_train_step
from support.steps import steps
from support.tiny import smallest_config, tiny_config

PARAMS = {
    "backbone": {"blocks_0": {"kernel": 1, "bias": 2}, "blocks_1": {"kernel": 3}},
    "decode_head": {"kernel": 4},
}


@pytest.mark.parametrize("patterns", [(), ("backbone/",), ("backbone/blocks_0/k", ".*bias")])
def test_parameters_are_split_and_joined(patterns):
    trained, frozen = split_frozen(PARAMS, patterns)
    assert not set(by_path(trained)) & set(by_path(frozen))
    assert join_frozen(trained, frozen) == PARAMS
    if patterns == ("backbone/",):
        assert trained == {"decode_head": {"kernel": 4}}


def test_patterns_that_freeze_nothing_or_everything_are_refused():
    with pytest.raises(ConfigError, match="no parameter begins with 'blocks'; the first of 4"):
        check_frozen(PARAMS, ("backbone/", "blocks"))
    with pytest.raises(ConfigError, match="nothing would train"):
        check_frozen(PARAMS, ("",))
    check_frozen(PARAMS, ("backbone/blocks_[01]/",))


def recomputing_config():
    config = tiny_config()
    config.model.backbone.remat = True
    config.model.backbone.drop_path = 0.5
    return config


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("make", "patterns"),
    [
        (smallest_config, ("backbone/blocks_", "backbone/patch_embed")),
        (recomputing_config, ("backbone/", "decode_head/fpn_")),
    ],
    ids=["blocks of BEiT", "InternImage that is recomputed, and a part of UPerNet"],
)
def test_frozen_leaves_stay_and_have_no_moments(make, patterns):
    config = make()
    config.optim.freeze, config.optim.warmup_steps = patterns, 0
    before, after = steps(config, 5)
    for kind in ("params", "batch_stats"):
        old, new = (by_path(getattr(state, kind)) for state in (before, after))
        for path, leaf in old.items():
            frozen = any(path.startswith(pattern) for pattern in patterns)
            assert np.array_equal(leaf, new[path]) == frozen, path
    trained = set(by_path(split_frozen(before.params, patterns)[0]))
    moments = {path.split("/", 2)[2] for path in by_path(after.opt_state) if "/mu/" in path}
    assert moments == trained


@pytest.mark.usefixtures("standard_promotion")
def test_frozen_parts_run_as_in_evaluation():
    config = recomputing_config()
    model = build_model(config.model)
    variables = init_variables(model, jax.random.key(0), (64, 64))
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    outputs = [
        apply_model(model, variables, images, train=True, dropout_rng=key, frozen=frozen)[0].logits
        for key in jax.random.split(jax.random.key(1))
        for frozen in (("",), ())
    ]
    evaluated = apply_model(model, variables, images)[0].logits
    np.testing.assert_array_equal(outputs[0], evaluated)
    np.testing.assert_array_equal(outputs[2], evaluated)
    assert not np.array_equal(outputs[1], outputs[3])


@functools.cache
def flops(*patterns):
    """Operations of a step of the full-size BEiT-L with Mask2Former, before optimization."""
    config = load_config(
        "configs/ade20k.py:mask2former_beit_adapter_l_cocostuff", {"batch_size": 2}
    )
    config.optim.freeze, config.model.dtype = patterns, "float32"
    model = build_model(config.model)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    state = jax.eval_shape(lambda: init_state(config, model, optimizer))
    hw = (2, *config.data.crop_hw)
    batch = {
        "image": jax.ShapeDtypeStruct((*hw, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct(hw, jnp.int32),
    }
    step = jax.jit(make_train_step(config, model, optimizer))
    return step.lower(state, batch).cost_analysis()["flops"]


@pytest.mark.full
def test_a_frozen_backbone_saves_more_than_two_fifths_of_the_operations():
    assert flops("backbone/") < 0.6 * flops()
    assert flops("backbone/blocks_") < flops()


def test_an_empty_setting_freezes_nothing():
    config = load_config("configs/ade20k.py:upernet_internimage_t", {"optim.freeze": ""})
    assert frozen_patterns(config.optim) == ()


def test_the_patterns_name_parts_of_published_recipes():
    config = load_config("configs/ade20k.py:upernet_internimage_t")
    shapes = variable_shapes(build_model(config.model))["params"]
    check_frozen(shapes, ("backbone/levels_[01]/", "backbone/patch_embed/"))
