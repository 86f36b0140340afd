"""Ten training steps of a small model, as the original took them."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from reference_files import Recording, recordings

from converters import rules
from converters.fill import fill
from jaxseg import optim, train_step
from jaxseg.models import segmentor

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("standard_promotion")]

# The original's own float32 differs from its float64 by 3.5e-6 in the losses and 4e-5 in the
# parameters, which Adam amplifies where gradients vanish.
# The norm of one gradient differs more: 3e-4 in the original itself.
LOSS, NORM, PARAMETERS = 5e-5, 5e-3, 5e-4


def config_of(hparams):
    uper = hparams["kind"] == "upernet"
    classes = {"num_classes": hparams["num_classes"], "dropout": 0.0}
    auxiliary = {"kind": "fcn", "channels": hparams.get("aux_channels"), **classes}
    settings = {
        "seed": hparams["seed"],
        "steps": hparams["max_iters"],
        "loss": {"auxiliary_weight": hparams.get("aux_weight")},
        "model": {
            "dtype": "float32",
            "backbone": {
                "kind": "intern_image",
                "channels": hparams["channels"],
                "depths": hparams["depths"],
                "groups": hparams["groups"],
                "layer_scale": 1.0,
                "post_norm": hparams["variant"].startswith("postnorm"),
                "offset_scale": 2.0 if hparams["variant"].endswith("os2") else 1.0,
            },
            "decode_head": {
                "kind": "uper" if uper else "segformer",
                "channels": hparams["head_channels"],
                **classes,
            },
            "auxiliary_head": auxiliary if uper else None,
        },
        "optim": {
            "lr": hparams["base_lr"],
            "layer_decay": hparams["layer_decay_rate"],
            "betas": hparams["betas"],
            "weight_decay": hparams["weight_decay"],
            "warmup_steps": hparams["warmup_iters"],
            "warmup_ratio": hparams["warmup_ratio"],
            "power": hparams["power"],
            "clip_norm": hparams["grad_clip_max_norm"],
            "accumulation": 1,
            "ema_decay": 0.0,
        },
    }
    return ConfigDict(settings)


def shapes_of(model, names):
    """The PyTorch shape of every named tensor, from the shapes of the model here."""
    variables = traverse_util.flatten_dict(segmentor.shapes(model), sep="/")
    shapes = {
        rules.to_name(path): rules.channels_first_shape(leaf.shape, path)
        for path, leaf in variables.items()
    }
    assert set(shapes) == {name for name in names if not name.endswith(rules.COUNTER)}
    return shapes


@pytest.mark.parametrize("path", recordings("internimage/trajectory"), ids=lambda p: p.stem)
def test_training_follows_the_reference(path):
    recording = Recording(path)
    config = config_of(recording.hparams)
    model = segmentor.build(config.model)
    optimizer = optim.make(config.optim, config.model.backbone, config.steps)
    names = [str(name) for name in recording["final/names"]]
    shapes = shapes_of(model, names)
    variables = rules.to_variables({name: fill(name, shape) for name, shape in shapes.items()})

    state = train_step.TrainState(
        step=np.int32(0), **variables, opt_state=optimizer.init(variables["params"])
    )
    step = jax.jit(train_step.make_train_step(config, model, optimizer))
    rate = optim.schedule(config.optim, config.steps)
    lr_scale = recording["group_lr_scale"]
    for k in range(recording.hparams["steps"]):
        np.testing.assert_allclose(
            rate(k) * lr_scale, recording["log/lr"][k], rtol=1e-5, atol=1e-15
        )
        images = np.moveaxis(recording["images"][k], 1, -1)
        labels = recording["labels"][k, :, 0].astype(np.int32)
        state, logs = step(state, {"image": images, "label": labels})
        expected = recording["log64/loss"][k]
        assert abs(logs["loss"] - expected) < LOSS * expected, k
        norm = recording["log64/grad_norm"][k]
        assert abs(logs["gradient_norm"] - norm) < 1e-3 * norm, k

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    final = traverse_util.flatten_dict(variables, sep="/")
    for index, name in enumerate(names):
        if name not in shapes:
            continue
        path = rules.to_path(name, len(shapes[name]))
        value = np.asarray(final[path], np.float64)
        assert abs(value.mean() - recording["final/mean"][index]) < PARAMETERS, name
        assert abs(value.std() - recording["final/std"][index]) < PARAMETERS, name
        if f"final/full/{name}" in recording:
            expected = rules.to_channels_last(recording[f"final/full/{name}"], path)
            np.testing.assert_allclose(value, expected, atol=PARAMETERS, err_msg=name)
