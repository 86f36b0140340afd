"""Where the weights are in what training programs save."""

import numpy as np
import pytest

from converters import state_dict
from jaxseg.errors import CheckpointError


def weights(fill=1.0, prefix=""):
    return {
        f"{prefix}backbone.conv.weight": np.full((2, 2), fill, np.float32),
        f"{prefix}backbone.conv.bias": np.full(2, fill, np.float32),
        f"{prefix}decode_head.norm.running_mean": np.full(2, fill, np.float32),
    }


def values(found):
    """One number per tensor: what it is filled with."""
    return {name: float(tensor.flat[0]) for name, tensor in found.tensors.items()}


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "teacher"])
def test_weights_under_a_key(key):
    found = state_dict.find_state_dict(
        {"epoch": 3, key: weights(), "optimizer": {"state": {}, "groups": []}}
    )
    assert list(found.tensors) == list(weights())
    assert found.beside == ("epoch (3)", "optimizer (2 entries)")


def test_weights_at_the_top():
    found = state_dict.find_state_dict(weights())
    assert list(found.tensors) == list(weights())
    assert found.beside == ()
    assert found.meta == {}


def test_the_order_in_which_keys_are_tried():
    obj = {"teacher": weights(4), "module": weights(3), "model": weights(2)}
    assert set(values(state_dict.find_state_dict(obj)).values()) == {2}
    assert set(values(state_dict.find_state_dict({**obj, "state_dict": weights(1)})).values()) == {
        1
    }


def test_keys_that_hold_no_dict_are_no_nesting():
    found = state_dict.find_state_dict({"model": "internimage_t", **weights()})
    assert found.beside == ("model (str)",)
    assert list(found.tensors) == list(weights())


def test_weights_two_levels_deep():
    found = state_dict.find_state_dict(
        {"model": {"module": weights(), "step": 5}, "args": {"lr": 1}}
    )
    assert list(found.tensors) == list(weights())
    assert found.beside == ("args (1 entry)", "step (5)")


def test_a_file_that_holds_itself_ends():
    obj = {}
    obj["model"] = obj
    with pytest.raises(CheckpointError, match="no weights"):
        state_dict.find_state_dict(obj)


WRAPPED = {
    "module.": "DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "module._orig_mod.": "compiled, then distributed",
    "_orig_mod.module.": "distributed, then compiled",
    "model.": "Lightning",
    "model._orig_mod.": "compiled in Lightning",
    "_forward_module.model.": "DeepSpeed in Lightning",
    "net.module._orig_mod.": "in any depth",
    "_fsdp_wrapped_module._checkpoint_wrapped_module.": "FSDP",
}


@pytest.mark.parametrize("prefix", WRAPPED)
def test_what_wraps_the_model_is_taken_off_the_names_and_kept_for_messages(prefix):
    found = state_dict.find_state_dict({"state_dict": weights(prefix=prefix)})
    assert list(found.tensors) == list(weights())
    assert found.file_names == dict(zip(weights(), weights(prefix=prefix), strict=True))
    backbone = {name.removeprefix("backbone."): it for name, it in weights().items()}
    del backbone["decode_head.norm.running_mean"]
    alone = {prefix + name: it for name, it in backbone.items()}
    assert list(state_dict.find_state_dict(alone).tensors) == list(backbone)


def test_what_wraps_a_part_is_taken_off_within_the_names():
    parts = {
        "backbone._orig_mod.conv.weight": np.zeros(2, np.float32),
        "decode_head.module.norm._checkpoint_wrapped_module.bias": np.zeros(2, np.float32),
    }
    names = ["backbone.conv.weight", "decode_head.norm.bias"]
    assert list(state_dict.find_state_dict(parts).tensors) == names


def test_an_average_beside_the_model_is_told_and_taken_on_request():
    tensors = weights(1, prefix="model.") | weights(2, prefix="ema_model.module.")
    tensors |= {"criterion.weight": np.ones(2, np.float32)}
    found = state_dict.find_state_dict({"state_dict": tensors, "pytorch-lightning_version": "2"})
    assert set(values(found).values()) == {1}
    assert "ema_model (averaged weights, 3 tensors)" in found.beside
    assert "criterion (1 tensors)" in found.beside
    averaged = state_dict.find_state_dict({"state_dict": tensors}, prefer_ema=True)
    assert set(values(averaged).values()) == {2}
    assert list(averaged.tensors) == list(weights())


def test_classes_of_mmengine_are_counted():
    meta = {"dataset_meta": {"classes": ("a", "b", "c")}, "mmengine_version": "0.10"}
    found = state_dict.find_state_dict({"state_dict": weights(), "meta": meta})
    assert found.meta == {"mmengine_version": "0.10", "classes": "3"}


def test_names_that_meet_without_their_prefix_are_an_error():
    with pytest.raises(CheckpointError, match=r"'module\.backbone\.conv\.weight'.* same tensor"):
        state_dict.find_state_dict(weights(prefix="module.") | weights())


def test_what_is_no_tensor_is_reported():
    obj = weights() | {"version": 2, "name": "model", "history": [1, 2, 3], 7: np.ones(2)}
    found = state_dict.find_state_dict(obj)
    assert list(found.tensors) == list(weights())
    assert found.beside == (
        *("version (2)", "name (str)", "history (3 entries)"),
        "7 (tensor of shape (2,))",
    )


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict", "ema"])
def test_averages_in_a_dict_of_their_own(key):
    obj = {"model": weights(1), key: weights(2)}
    plain, averaged = (
        state_dict.find_state_dict(obj),
        state_dict.find_state_dict(obj, prefer_ema=True),
    )
    assert set(values(plain).values()) == {1}
    assert plain.beside == (f"{key} (averaged weights, 3 entries)",)
    assert set(values(averaged).values()) == {2}
    assert averaged.beside == ("model (3 entries)",)


def test_averages_as_buffers_of_mmcv():
    plain = weights(1)
    buffers = {
        "ema_backbone_conv_weight": np.full((2, 2), 2, np.float32),
        "ema_backbone_conv_bias": np.full(2, 3, np.float32),
    }
    # A parameter of the model itself, whatever its name begins with.
    own = {"ema_gate": np.full(1, 9, np.float32)}
    obj = {"state_dict": plain | own | buffers}
    found = state_dict.find_state_dict(obj)
    assert values(found) == values(state_dict.find_state_dict(plain | own))
    assert found.beside == ("2 tensors (averages, ema_*)",)

    found = state_dict.find_state_dict(obj, prefer_ema=True)
    assert values(found) == {
        "backbone.conv.weight": 2,
        "backbone.conv.bias": 3,
        "decode_head.norm.running_mean": 1,
        "ema_gate": 9,
    }
    assert found.beside == ("2 tensors (their plain weights)",)


def test_averages_that_are_not_there_are_an_error():
    with pytest.raises(CheckpointError, match=r"no averaged \(EMA\) weights.*optimizer"):
        state_dict.find_state_dict({"model": weights(), "optimizer": {}}, prefer_ema=True)


def test_a_file_of_averages_alone_says_what_it_holds():
    obj = {"model_ema": weights()}
    with pytest.raises(CheckpointError, match=r"only model_ema \(averaged weights, 3 entries\)"):
        state_dict.find_state_dict(obj)
    assert list(state_dict.find_state_dict(obj, prefer_ema=True).tensors) == list(weights())


def test_meta_of_mmcv():
    meta = {
        "mmcv_version": "1.5.0",
        "epoch": 12,
        "iter": np.int64(160000),
        "time": "Mon Jan  1 00:00:00 2024",
        "config": "a long text",
        "env_info": "another",
        "CLASSES": ("road", "car"),
        "PALETTE": [[1, 2, 3], [4, 5, 6]],
    }
    found = state_dict.find_state_dict({"meta": meta, "state_dict": weights()})
    assert found.meta == {
        "mmcv_version": "1.5.0",
        "epoch": "12",
        "iter": "160000",
        "time": "Mon Jan  1 00:00:00 2024",
        "classes": "2",
    }
    assert found.beside == ("meta (8 entries)",)


def test_an_epoch_beside_the_weights_is_worth_printing():
    assert state_dict.find_state_dict({"model": weights(), "epoch": 299}).meta == {"epoch": "299"}


@pytest.mark.parametrize("obj", [[], None, np.ones(3), "text"])
def test_what_is_no_dict_is_an_error(obj):
    with pytest.raises(CheckpointError, match="not a dict of tensors"):
        state_dict.find_state_dict(obj)


@pytest.mark.parametrize("obj", [{}, {"epoch": 3}, {"state_dict": {"a": 1}}, {"a": {"b": {}}}])
def test_a_dict_without_tensors_is_an_error(obj):
    with pytest.raises(CheckpointError, match="no weights"):
        state_dict.find_state_dict(obj)
