"""What a run has trained is written alone, and gives the same model again."""

import json

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from converters.adapter import apply_adapter, write_adapter
from jaxseg.checkpoints.weights import (
    load_leaves,
    load_on_device,
    load_saved_config,
    save_weights,
)
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.segmentation_model import build_model, init_variables
from jaxseg.parameter_paths import by_path, nested, with_leaves
from support.tiny import smallest_config


@pytest.fixture
def run(tmp_path):
    """A run that started from other weights, with LoRA and a trained head."""
    config = smallest_config()
    model = build_model(config.model)
    start = jax.jit(lambda: init_variables(model, jax.random.key(5), (64, 64)))()
    save_weights(tmp_path / "start", start, config.to_dict())
    config.init = str(tmp_path / "start")
    config.optim.freeze = "backbone/"
    config.optim.lora.update(rank=2, alpha=4.0)
    rng = np.random.default_rng(0)
    changed = {
        path: rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in by_path(start).items()
        if "/decode_head/" in path
    }
    layer = "params/backbone/blocks_1/attn/qkv"
    shapes = {"lora_a": (16, 2), "lora_b": (2, 48), "lora_scale": ()}
    changed |= {
        f"{layer}/{name}": np.asarray(rng.standard_normal(shape), np.float32)
        for name, shape in shapes.items()
    }
    changed[f"{layer}/lora_scale"] = np.array(2, np.float32)
    save_weights(tmp_path / "run", with_leaves(start, changed), config.to_dict())
    return tmp_path / "run", model


def test_an_adapter_is_small_and_gives_the_same_model(run, tmp_path):
    checkpoint, model = run
    count = write_adapter(checkpoint, tmp_path / "adapter")
    expected = by_path(load_on_device(checkpoint / "checkpoints/0", model))
    of_head = [path for path in expected if "/decode_head/" in path]
    assert count == len(of_head) + 3  # and A, B and scale
    said = apply_adapter(tmp_path / "adapter", tmp_path / "whole")
    assert f"{count} tensors of {tmp_path / 'adapter'}" in said
    found = by_path(load_on_device(tmp_path / "whole/checkpoints/0", model))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_a_run_that_freezes_nothing_is_refused(tmp_path):
    config = smallest_config()
    model = build_model(config.model)
    variables = jax.jit(lambda: init_variables(model, jax.random.key(0), (64, 64)))()
    save_weights(tmp_path / "run", variables, config.to_dict())
    with pytest.raises(ConfigError, match=r"no frozen parameters that config\.init would give"):
        write_adapter(tmp_path / "run", tmp_path / "adapter")


def test_an_adapter_of_another_model_or_start_is_refused(run, tmp_path):
    checkpoint, model = run
    write_adapter(checkpoint, tmp_path / "adapter")
    file = tmp_path / "adapter/adapter.json"
    written = file.read_text()
    file.write_text(written.replace('"channels": 16', '"channels": 8'))
    with pytest.raises(CheckpointError, match="is of another model"):
        apply_adapter(tmp_path / "adapter", tmp_path / "whole")
    other = jax.jit(lambda: init_variables(model, jax.random.key(6), (64, 64)))()
    save_weights(tmp_path / "other", other, smallest_config().to_dict())
    file.write_text(written.replace(str(tmp_path / "start"), str(tmp_path / "other")))
    with pytest.raises(CheckpointError, match="gives other weights than those that the run kept"):
        apply_adapter(tmp_path / "adapter", tmp_path / "whole")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"adapter\.json cannot be read"):
        apply_adapter(tmp_path / "adapter", tmp_path / "whole")


def test_the_moving_average_is_written_in_place_of_the_weights(run, tmp_path):
    checkpoint, model = run
    config = load_saved_config(checkpoint / "checkpoints/0")
    stored = load_leaves(checkpoint / "checkpoints/0", lambda path: True)
    average = {
        path.replace("params", "ema", 1): np.asarray(leaf + np.float32("decode_head" in path))
        for path, leaf in stored.items()
        if path.startswith("params/")
    }
    ocp.save_checkpointables(
        tmp_path / "averaged/checkpoints/0",
        {"model": nested(stored | average)},
        custom_metadata={"config": json.loads(json.dumps(config))},
    )
    write_adapter(tmp_path / "averaged", tmp_path / "adapter")
    apply_adapter(tmp_path / "adapter", tmp_path / "whole")
    expected, found = (
        by_path(load_on_device(tmp_path / name / "checkpoints/0", model))
        for name in ("averaged", "whole")
    )
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    path = "params/decode_head/conv_seg/bias"
    np.testing.assert_array_equal(found[path], stored[path] + 1)
