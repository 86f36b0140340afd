"""Trains as a recording of ViT-Adapter says, in float64: python train_in_float64.py FILE OUTPUT.

Where jaxseg wants precision, it says float32. So this program gives that name to float64 before
anything of jaxseg is imported, which takes a process of its own. OUTPUT is an .npz file with the
fields of a `Trajectory`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from reference_files import Recording

# The original's name of a setting and the one here, where they differ.
NAMES = {"drop_path_rate": "drop_path", "n_points": "num_points", "cffn_ratio": "ffn_ratio"}
AUXILIARY_WEIGHT = 0.4  # of the published recipes; the recordings do not say


def backbone_of(settings):
    """The config of the recorded backbone; a setting that is not known here fails in its class."""
    settings = {NAMES.get(name, name): value for name, value in settings.items()}
    settings["pretrain_grid"] = settings.pop("pretrain_size") // settings.pop("patch_size")
    assert not any(settings.pop("window_attn") + settings.pop("window_size"))
    del settings["img_size"]
    return {"kind": "vit_adapter", **settings}


def config_of(recording):
    meta = recording.json("meta")
    classes = {"num_classes": meta["num_classes"], "dropout": 0.0}
    channels = recording["final/value/decode_head.conv_seg.weight"].shape[1]
    aux_channels = recording["final/value/auxiliary_head.convs.0.bn.running_mean"].shape[0]
    settings = {
        "seed": meta["seed"],
        "steps": meta["max_iters"],
        "loss": {"auxiliary_weight": AUXILIARY_WEIGHT},
        "model": {
            "dtype": "float64",
            "backbone": backbone_of(meta["backbone"]),
            "decode_head": {"kind": "uper", "channels": channels, **classes},
            "auxiliary_head": {"kind": "fcn", "channels": aux_channels, **classes},
        },
        "optim": {
            "lr": meta["lr"],
            "layer_decay": meta["layer_decay"],
            "custom_keys": (),
            "betas": meta["betas"],
            "weight_decay": meta["weight_decay"],
            "warmup_steps": meta["warmup_iters"],
            "warmup_ratio": meta["warmup_ratio"],
            "power": meta["power"],
            "clip_norm": 0.0,
            "accumulation": 1,
            "ema_decay": 0.0,
        },
    }
    return ConfigDict(settings)


def main(file, output):
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64
    import numpy as np
    from trajectories import train

    recording = Recording(pathlib.Path(file))
    images, labels = recording["inputs/images"], recording["inputs/labels"]
    steps = range(recording.json("meta")["steps"])
    batches = ((images[k % len(images)], labels[k % len(labels)]) for k in steps)
    result = train(config_of(recording), recording["final/names"].tolist(), batches)
    np.savez(
        output,
        losses=result.losses,
        gradient_norms=result.gradient_norms,
        **{f"first_norms/{name}": norm for name, norm in result.first_norms.items()},
        **{f"final/{name}": value for name, value in result.final.items()},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
