"""Sharding: rules over paths, and the same losses on any mesh."""

import functools
import math
import types
from unittest import mock

import jax
import numpy as np
import pytest

from jaxseg.aot import collectives
from jaxseg.aot.programs import trace_train_step
from jaxseg.distributed.sharding import compiler_options, infer_shardings, make_mesh, put_batch
from jaxseg.errors import ConfigError
from jaxseg.models.segmentation_model import build_model
from jaxseg.parameter_paths import by_path, path_of
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.step import make_train_step
from support.tiny import initial_state, smallest_config, tiny_config

pytestmark = pytest.mark.long

STEPS = 10


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        label = rng.integers(0, 19, (8, 8, 8)).repeat(8, axis=1).repeat(8, axis=2).astype(np.int32)
        noise = rng.standard_normal((8, 64, 64, 3))
        yield {"image": (noise + label[..., None] / 10).astype(np.float32), "label": label}


@functools.cache
def run(data, fsdp, devices, accumulation=1, remat_keeps=None, repeated=1, of_model=tiny_config):
    """Losses of ten steps, and the state after them."""
    config = of_model()
    config.optim.accumulation = accumulation
    if remat_keeps:
        config.model.backbone.remat, config.model.backbone.remat_keeps = True, remat_keeps
    mesh = make_mesh({"data": data, "fsdp": fsdp}, jax.devices()[:devices])
    model = build_model(config.model)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = make_optimizer(config.optim, config.model.backbone, STEPS)
        start = initial_state(of_model)
        shardings = infer_shardings(start, config.sharding, mesh)
        # A copy: the step donates its state.
        state = jax.device_put(jax.tree.map(np.asarray, start), shardings)
        step = jax.jit(
            make_train_step(config, model, optimizer),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        losses = []
        with jax.set_mesh(mesh):
            for batch in batches():
                batch = {name: array.repeat(repeated, axis=0) for name, array in batch.items()}
                state, logs = step(state, put_batch(batch, mesh))
                losses.append(float(logs["loss"]))
    return losses, state


@pytest.mark.parametrize(
    ("data", "fsdp"),
    [(2, 4), *(pytest.param(*axes, marks=pytest.mark.full) for axes in ((8, 1), (1, 8)))],
)
def test_losses_are_those_of_one_device(data, fsdp):
    expected, _ = run(1, 1, 1)
    losses, _ = run(data, fsdp, 8)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_fsdp_holds_its_share_of_parameters_and_optimizer_state_per_device():
    _, state = run(2, 4, 8)
    for tree in (state.params, state.opt_state):
        leaves = jax.tree.leaves(tree)
        whole = sum(leaf.nbytes for leaf in leaves)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        # Biases and norms are repeated: a few per cent of so small a model.
        assert whole / 4 <= held < whole / 4 * 1.4
    kernels = [
        leaf
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if path_of(key_path).endswith("kernel") and any(n % 4 == 0 for n in leaf.shape)
    ]
    assert kernels
    assert all(leaf.addressable_shards[0].data.nbytes * 4 == leaf.nbytes for leaf in kernels)


@pytest.mark.full
@pytest.mark.parametrize("keeps", ["nothing", "kernels", "matmuls", "matmuls_on_host"])
def test_rematerialization_changes_nothing(keeps):
    expected, _ = run(1, 1, 1)
    losses, _ = run(1, 1, 1, remat_keeps=keeps)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def partly_frozen():
    """With a frozen backbone, of which two products are adapted."""
    config = smallest_config()
    config.optim.freeze, config.optim.lora.rank = "backbone/", 4
    return config


@pytest.mark.full
def test_losses_of_a_frozen_and_adapted_backbone_are_those_of_one_device():
    expected, _ = run(1, 1, 1, of_model=partly_frozen)
    losses, state = run(2, 4, 8, of_model=partly_frozen)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    start = by_path(initial_state(partly_frozen).params)
    for path, leaf in by_path(state.params).items():
        adapts = path.endswith(("/lora_a", "/lora_b"))
        stays = path.startswith("backbone/") and not adapts
        assert np.array_equal(leaf, start[path]) == stays, path


def without_random_drops():
    config = smallest_config()
    config.model.backbone.drop_path = config.model.decode_head.dropout = 0.0
    return config


def test_accumulating_two_equal_parts_is_training_on_one_of_them():
    # Equal parts have equal batch statistics, which is where accumulation differs otherwise.
    expected, _ = run(1, 1, 1, of_model=without_random_drops)
    losses, _ = run(1, 1, 1, of_model=without_random_drops, repeated=2, accumulation=2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_mesh_takes_what_is_left():
    mesh = make_mesh({"data": -1, "fsdp": 4})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
    "axes", [{"data": 3, "fsdp": 1}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}]
)
def test_mesh_that_does_not_fit_the_devices_is_refused(axes):
    with pytest.raises(ConfigError, match="8 devices"):
        make_mesh(axes)


def test_a_parameter_without_sharding_rule_is_named():
    mesh = make_mesh({"data": -1, "fsdp": 1})
    with pytest.raises(ConfigError, match="head/bias"):
        infer_shardings({"head": {"bias": np.zeros(3)}}, (("kernel", "fsdp"),), mesh)


def collectives_of_step(config, axes):
    """What the devices of a mesh send to one another in a whole train step; its parameters."""
    mesh = make_mesh(axes)
    with jax.numpy_dtype_promotion("standard"):  # the schedule needs it
        traced, state, _ = trace_train_step(config, mesh)
    found = collectives.parse_collectives(traced.lower().compile().as_text(), mesh.size)
    sent = {kind: [c.shapes for c in found if c.kind == kind] for kind in {c.kind for c in found}}
    return sent, state


def elements(shapes):
    return sum(math.prod(shape) for arrays in shapes for _, shape in arrays)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(tiny_config(), id="internimage", marks=pytest.mark.full),
        pytest.param(smallest_config(), id="beit"),
    ],
)
def test_operators_stay_on_their_share_of_the_batch(config):
    """Nothing but gradients and statistics is summed, and nothing else is sent."""
    sent, state = collectives_of_step(config, {"data": 8, "fsdp": 1})
    assert list(sent) == ["all-reduce"]
    weights, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    )
    # A gradient for each weight, two sums over the batch and their gradients for each statistic.
    assert weights < elements(sent["all-reduce"]) < weights + 2 * statistics


@pytest.mark.full
def test_of_split_weights_only_those_are_gathered_one_by_one():
    sent, state = collectives_of_step(tiny_config(), {"data": 1, "fsdp": 8})
    leaves = jax.tree.leaves(state.params)
    split = [x.sharding.shard_shape(x.shape) for x in leaves if not replicated(x)]
    assert sorted(sent.pop("all-gather")) == sorted((("f32", shape),) for shape in split)
    # Parts of gradients that are summed along another axis than the weight's change places.
    assert elements(sent.pop("all-to-all")) < sum(x.size for x in leaves) / 8
    assert list(sent) == ["all-reduce"]


def replicated(leaf):
    return leaf.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("devices", "put_together"),
    [
        ([{"platform": "tpu", "slice_index": 0}, {"platform": "tpu", "slice_index": 1}], True),
        ([{"platform": "tpu", "slice_index": 1}] * 2, False),
        ([{"platform": "tpu"}] * 2, False),  # as one slice that is compiled for is described
        ([{"platform": "cuda", "slice_index": 0}, {"platform": "cuda", "slice_index": 1}], False),
    ],
    ids=["slices", "one slice", "undescribed", "nodes of GPUs"],
)
def test_sums_are_put_together_between_slices_alone(devices, put_together):
    grid = np.array([types.SimpleNamespace(**device) for device in devices])[:, None]
    assert bool(compiler_options(mock.Mock(spec=jax.sharding.Mesh, devices=grid))) == put_together
