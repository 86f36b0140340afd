"""Low-rank adaptation: it begins as the original, trains alone, and merges to the same model."""

import functools

import jax
import numpy as np
import pytest

from jaxseg.checkpoints.initial_weights import load_initial_weights
from jaxseg.checkpoints.weights import load_on_device, save_weights
from jaxseg.errors import ConfigError
from jaxseg.models.lora import add_low_rank, is_low_rank, merge_low_rank, split_low_rank
from jaxseg.models.segmentation_model import apply_model, build_model, init_variables
from jaxseg.parameter_paths import by_path, nested, with_leaves
from jaxseg.training.freezing import frozen_patterns, split_frozen
from support.steps import steps
from support.tiny import smallest_config

pytestmark = pytest.mark.usefixtures("standard_promotion")
SETTINGS = {"rank": 2, "alpha": 8.0, "layers": "backbone/blocks_[0-9]+/attn/(qkv|proj)"}


@functools.cache
def initialized(seed):
    model = build_model(smallest_config().model)
    return jax.jit(lambda: init_variables(model, jax.random.key(seed), (64, 64)))()


def adapted(seed=0):
    """A model, its variables, and the same with adaptations whose B is not zero."""
    model = build_model(smallest_config().model)
    variables = initialized(0)
    # Layer scale begins at 1e-6, which would hide the attention.
    ones = {
        path: np.ones(leaf.shape, np.float32)
        for path, leaf in by_path(variables["params"]).items()
        if "gamma" in path
    }
    variables = variables | {"params": with_leaves(variables["params"], ones)}
    params = add_low_rank(variables["params"], jax.random.key(1), SETTINGS)
    rng = np.random.default_rng(seed)
    changed = {
        path: rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in by_path(params).items()
        if path.endswith("lora_b")
    }
    return model, variables, params, variables | {"params": with_leaves(params, changed)}


def images():
    return np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)


def logits(model, variables):
    run = jax.jit(lambda variables: apply_model(model, variables, images())[0].logits)
    return np.asarray(run(variables))


def test_an_adapted_model_begins_as_the_original():
    model, variables, params, _ = adapted()
    found = {path: leaf for path, leaf in by_path(params).items() if is_low_rank(path)}
    assert len(found) == 3 * 2 * 4  # leaves, layers, blocks
    assert {float(leaf) for path, leaf in found.items() if path.endswith("scale")} == {4.0}
    expected = logits(model, variables)
    np.testing.assert_array_equal(logits(model, variables | {"params": params}), expected)


def test_merged_weights_give_the_same_as_adapted_ones():
    model, variables, _, changed = adapted()
    merged = nested(merge_low_rank(by_path(changed)))
    assert merged["params"].keys() == variables["params"].keys()
    assert by_path(merged).keys() == by_path(variables).keys()
    expected, found = logits(model, changed), logits(model, merged)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(logits(model, variables) - expected).max() > 0.01 * np.abs(expected).max()


def test_what_is_saved_is_read_as_the_merged_model(tmp_path):
    model, _, _, changed = adapted()
    save_weights(tmp_path / "run", changed, smallest_config().to_dict())
    loaded = load_on_device(tmp_path / "run/checkpoints/0", model)
    expected = by_path(merge_low_rank(by_path(changed)))
    assert by_path(loaded).keys() == expected.keys()
    for path, leaf in by_path(loaded).items():
        np.testing.assert_array_equal(leaf, expected[path])
    fresh = initialized(2)
    started, said = load_initial_weights(str(tmp_path / "run"), fresh, "tiny")
    jax.tree.map(np.testing.assert_array_equal, started["params"], loaded["params"])
    assert said.startswith(f"{len(by_path(fresh))} tensors of")


def test_only_the_small_matrices_of_an_adapted_layer_are_trained():
    config = smallest_config()
    config.optim.lora.update(SETTINGS)
    config.optim.freeze, config.optim.warmup_steps = "(backbone|decode_head)/", 0
    before, after = steps(config, 2)
    old, new = by_path(before.params), by_path(after.params)
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed == {path for path in old if path.endswith(("lora_a", "lora_b"))}
    trained, _ = split_frozen(before.params, frozen_patterns(config.optim))
    assert changed <= set(by_path(trained))
    assert not any("lora_scale" in path for path in by_path(trained))


def test_low_rank_leaves_are_split_off():
    _, variables, params, _ = adapted()
    own, low_rank = split_low_rank(params)
    assert by_path(own).keys() == by_path(variables["params"]).keys()
    assert all(map(is_low_rank, by_path(low_rank)))


def test_layers_that_are_not_there_or_not_linear_are_refused():
    params = initialized(0)["params"]
    with pytest.raises(ConfigError, match=r"lora\.layers: no linear layer is named 'dcn'"):
        add_low_rank(params, jax.random.key(0), SETTINGS | {"layers": "dcn"})
    with pytest.raises(ConfigError, match=r"layers=attn/\(: .* in this regular expression"):
        add_low_rank(params, jax.random.key(0), SETTINGS | {"layers": "attn/("})
    with pytest.raises(ConfigError, match="only linear layers are adapted"):
        add_low_rank(params, jax.random.key(0), SETTINGS | {"layers": "decode_head/conv_seg"})
