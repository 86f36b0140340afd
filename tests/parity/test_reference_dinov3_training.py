"""The training of DINOv3's linear head against its recordings: schedule, loss, ten steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from converters import dinov3 as names
from converters import rules, torch_weights
from jaxseg import parameter_paths
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.models.segmentation_model import build_model
from jaxseg.recipes.base import BASE
from jaxseg.recipes.dinov3 import EVERYTHING_DECAYS, TRANSFORMER
from jaxseg.training.freezing import split_frozen
from jaxseg.training.optimizer import learning_rate_schedule, make_optimizer
from jaxseg.training.state import TrainState
from jaxseg.training.step import make_train_step
from support.recorded_dinov3 import transformer_of
from support.recorded_modules import GRADIENTS, VALUES, first, last
from support.reference_files import REFERENCE, Recording, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("standard_promotion")]

FOLDER = REFERENCE / "dinov3"
HEAD = "segmentation_model.1."


def optim(lr, warmup_steps, warmup_ratio, **changes):
    settings = {"lr": lr, "warmup_steps": warmup_steps, "warmup_ratio": warmup_ratio}
    return ConfigDict(BASE["optim"] | settings | {"schedule": "dinov3"} | changes)


def test_schedule_equals_the_reference():
    recorded = json.loads((FOLDER / "optim" / "linear_lr_schedule.json").read_text())
    scheduler, rates = recorded["scheduler"], recorded["lr"]
    settings = [scheduler["warmup_iters"], scheduler["warmup_ratio"]]
    rate = learning_rate_schedule(
        optim(recorded["optimizer"]["lr"], *settings), scheduler["total_steps"]
    )
    found = [float(rate(int(step))) for step in rates]
    np.testing.assert_allclose(found, list(rates.values()), rtol=2e-6)


def test_cross_entropy_equals_the_reference():
    recording = Recording(FOLDER / "losses" / "linear_cross_entropy.npz")
    for case in sorted({name.split("/")[0] for name in recording.arrays} - {"__index__"}):
        inputs = recording.group(f"{case}/inputs/")
        labels = inputs["labels"].astype(np.int32)
        loss, gradient = jax.value_and_grad(cross_entropy)(last(inputs["logits"]), labels)
        assert float(loss) == pytest.approx(recording[f"{case}/outputs/loss"], rel=VALUES)
        expected = recording[f"{case}/grads/inputs/logits"]
        assert relative_error(first(gradient), expected) < GRADIENTS


def training_of(meta):
    """The config of the recorded run."""
    transformer = transformer_of(meta["backbone"]) | {"out_indices": meta["layers"]}
    head = {"num_classes": meta["num_classes"], "in_index": (0,), "dropout": meta["dropout"]}
    settings = {
        "variant": "recorded",
        "seed": meta["seed"],
        "steps": meta["max_iters"],
        "sharding": (),
        "loss": BASE["loss"],
        "model": {
            "dtype": "float32",
            "kernels": "auto",
            "backbone": {"kind": "dinov3", **transformer},
            "decode_head": {"kind": "linear", **head},
            "auxiliary_head": None,
        },
    }
    config = ConfigDict(settings)
    config.optim = optim(
        *(meta[key] for key in ("lr", "warmup_iters", "warmup_ratio")),
        betas=meta["betas"],
        weight_decay=meta["weight_decay"],
        custom_keys=EVERYTHING_DECAYS,
        freeze=TRANSFORMER,
    )
    return config


def test_ten_steps_equal_the_reference():
    recording = Recording(FOLDER / "trajectory" / "linear_tiny.npz")
    meta = recording.json("meta")
    config = training_of(meta)
    model = build_model(config.model)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    tensors = recording.params()
    variables = torch_weights.from_state_dict(tensors, config)
    trained, _ = split_frozen(variables["params"], (TRANSFORMER,))
    state = TrainState(np.int32(0), **variables, opt_state=optimizer.init(trained))
    step = jax.jit(make_train_step(config, model, optimizer))

    logs = []
    for i in range(meta["steps"]):
        images, labels = (recording[f"inputs/{name}"][i % 2] for name in ("images", "labels"))
        batch = {"image": last(images), "label": jnp.asarray(labels, jnp.int32)}
        state, log = step(state, batch)
        logs.append(jax.device_get(log))

    exact = recording.group("f64/")  # what float32 and float64 differ in is less than 1e-6
    np.testing.assert_allclose([log["loss"] for log in logs], exact["steps/loss"], rtol=1e-6)
    norms = [log["gradient_norm"] for log in logs]
    np.testing.assert_allclose(norms, exact["steps/grad_norm"], rtol=1e-5)
    assert set(parameter_paths.by_path(trained)) == {
        rules.to_path(names.rename(HEAD + name), ndim).removeprefix("params/")
        for name, ndim in {
            "conv.weight": 4,
            "conv.bias": 1,
            "batchnorm_layer.weight": 1,
            "batchnorm_layer.bias": 1,
        }.items()
    }
    found = parameter_paths.by_path({"params": state.params, "batch_stats": state.batch_stats})
    for name, expected in exact.items():
        if name.startswith("final/value/"):
            path = rules.to_path(names.rename(name.removeprefix("final/value/")), expected.ndim)
            value = rules.to_channels_first(np.asarray(found[path]), path)
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=name)
    before = parameter_paths.by_path(variables["params"])
    after = parameter_paths.by_path(state.params)
    frozen = before.keys() - parameter_paths.by_path(trained).keys()
    assert all(np.array_equal(before[path], after[path]) for path in frozen)
