"""Frozen parameters: no gradients, no moments, no statistics, and less to compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.aot.utilization import model_flops
from jaxseg.config import load_config
from jaxseg.errors import ConfigError
from jaxseg.models.segmentation_model import (
    apply_model,
    build_model,
    init_variables,
    variable_shapes,
)
from jaxseg.parameter_paths import by_path
from jaxseg.recipes.dinov3 import TRANSFORMER
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


def recomputing_config(make=smallest_config):
    config = make()
    with config.unlocked():
        config.model.backbone.remat = True
        config.model.backbone.drop_path = 0.5
    return config


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("make", "patterns"),
    [
        pytest.param(
            recomputing_config, ("backbone/blocks_", "backbone/patch_embed"), id="blocks of BEiT"
        ),
        pytest.param(
            functools.partial(recomputing_config, tiny_config),
            ("backbone/", "decode_head/fpn_"),
            id="InternImage and a part of UPerNet",
            marks=pytest.mark.full,
        ),
    ],
)
@pytest.mark.parametrize(("accumulation", "dtype"), [(1, "float32"), (2, "bfloat16")])
def test_frozen_leaves_stay_and_have_no_moments(make, patterns, accumulation, dtype):
    config = make()
    config.optim.freeze, config.optim.warmup_steps = ",".join(patterns), 0
    config.optim.ema_decay, config.optim.accumulation = 0.9, accumulation
    config.optim.frozen_dtype = dtype
    before, after = steps(config, 5)
    for kind in ("params", "batch_stats", "ema"):
        old, new = (by_path(getattr(state, kind)) for state in (before, after))
        for path, leaf in old.items():
            frozen = any(path.startswith(pattern) for pattern in patterns)
            assert np.array_equal(leaf, new[path]) == frozen, path
            assert (
                leaf.dtype
                == new[path].dtype
                == (dtype if frozen and kind != "batch_stats" else "float32")
            )
    trained = set(by_path(split_frozen(before.params, patterns)[0]))
    moments = {path.split("/", 2)[2] for path in by_path(after.opt_state) if "/mu/" in path}
    assert moments == trained


@pytest.mark.usefixtures("standard_promotion")
def test_frozen_parts_run_as_in_evaluation():
    config = recomputing_config()
    model = build_model(config.model)
    variables = init_variables(model, jax.random.key(0), (64, 64))
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def logits(key, train, frozen):
        arguments = {"train": train, "dropout_rng": key, "frozen": frozen}
        return apply_model(model, variables, images, **arguments)[0].logits

    one, other = jax.random.split(jax.random.key(1))
    evaluated = logits(one, False, ())
    for key in (one, other):
        np.testing.assert_allclose(logits(key, True, ("",)), evaluated, rtol=1e-5, atol=1e-7)
    assert not np.allclose(logits(one, True, ()), logits(other, True, ()), rtol=1e-3)


@functools.cache
def flops(recipe, *patterns):
    """Operations of a step of a full-size model on images of 896 pixels, before optimization."""
    settings = {"batch_size": 2, "model.dtype": "float32", "data.crop_hw": "896,896"}
    config = load_config(recipe, settings, classes_needed=False)
    config.optim.freeze = ",".join(patterns)
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
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("recipe", "frozen", "limit"),
    [
        ("configs/ade20k.py:upernet_beit_adapter_l", "backbone/", 0.6),
        # Half of the operations are those of Mask2Former, which trains: measured 36.0 of 55.7 T.
        ("configs/ade20k.py:mask2former_beit_adapter_l_cocostuff", "backbone/", 0.66),
        ("configs/ade20k.py:linear_dinov3_vitl16", TRANSFORMER, 0.6),
        # With a head of 256 channels; that of ADE20K has 2048 and is most of the work, 81 of 92 T.
        ("configs/custom.py:mask2former_dinov3_vitl16", TRANSFORMER, 0.6),
    ],
)
def test_a_frozen_backbone_saves_operations(recipe, frozen, limit):
    assert flops(recipe, frozen) < limit * flops(recipe)


@pytest.mark.parametrize(
    ("given", "patterns"),
    [
        ("", ()),
        ("backbone/", ("backbone/",)),
        ("backbone/,decode_head/fpn_", ("backbone/", "decode_head/fpn_")),
        ("backbone/(levels_[01]|patch_embed)/", ("backbone/(levels_[01]|patch_embed)/",)),
    ],
)
def test_patterns_are_given_on_a_command_line(given, patterns):
    settings = [f"--config.optim.freeze={given}"]
    config = load_config("configs/ade20k.py:upernet_internimage_t", settings)
    assert frozen_patterns(config.optim) == patterns


def test_a_regular_expression_that_is_not_valid_is_refused():
    config = load_config("configs/ade20k.py:upernet_internimage_t", {"optim.freeze": "*"})
    with pytest.raises(ConfigError, match=r"freeze=\*: nothing to repeat .* expression '\*'"):
        frozen_patterns(config.optim)


def test_frozen_parts_count_their_forward_pass_alone():
    config = load_config("configs/ade20k.py:upernet_internimage_t")
    whole = model_flops(config, (1, 128, 128, 3), "train")
    config.optim.freeze = "backbone/,decode_head/"
    assert model_flops(config, (1, 128, 128, 3), "train") == whole / 3


def test_the_patterns_name_parts_of_published_recipes():
    config = load_config("configs/ade20k.py:upernet_internimage_t")
    shapes = variable_shapes(build_model(config.model))["params"]
    check_frozen(shapes, ("backbone/levels_[01]/", "backbone/patch_embed/"))
