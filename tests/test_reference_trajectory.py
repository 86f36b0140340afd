"""Ten training steps of a small InternImage, as the original took them."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from reference_files import Recording, recordings
from trajectories import assert_final, train

from jaxseg import optim

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("standard_promotion")]

# The original's own float32 differs from its float64 by 3.5e-6 in the losses, 3e-4 in the norm of
# one gradient and 4e-5 in the parameters, which Adam amplifies where gradients vanish.
LOSS, NORM, PARAMETERS = 5e-5, 1e-3, 5e-4


def config_of(hparams):
    uper = hparams["kind"] == "upernet"
    classes = {"num_classes": hparams["num_classes"], "dropout": 0.0}
    auxiliary = {"kind": "fcn", "channels": hparams.get("aux_channels"), **classes}
    settings = {
        "seed": hparams["seed"],
        "steps": hparams["max_iters"],
        "loss": {"auxiliary_weight": hparams.get("aux_weight")},
        "sharding": (),
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
            "custom_keys": (),
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


@pytest.mark.parametrize("path", recordings("internimage/trajectory"), ids=lambda p: p.stem)
def test_training_follows_the_reference(path):
    recording = Recording(path)
    config = config_of(recording.hparams)
    names = recording["final/names"].tolist()
    labels = recording["labels"][:, :, 0]
    steps, batch, *hw = labels.shape
    images = np.random.default_rng(config.seed).standard_normal((steps, batch, 3, *hw))
    images = recording.arrays.get("images", images.astype(np.float32))
    batches = zip(images, labels, strict=True)
    trajectory = train(config, names, batches)

    rate = optim.schedule(config.optim, config.steps)
    for k, rates in enumerate(recording["log/lr"]):
        expected = rate(k) * recording["group_lr_scale"]
        np.testing.assert_allclose(expected, rates, rtol=1e-5, atol=1e-15)
    np.testing.assert_allclose(trajectory.losses, recording["log64/loss"], rtol=LOSS)
    np.testing.assert_allclose(trajectory.gradient_norms, recording["log64/grad_norm"], rtol=NORM)
    means, stds = recording["final/mean"], recording["final/std"]
    values = recording.group("final/full/")
    assert_final(trajectory.final, names, means, stds, values, PARAMETERS)
