"""The config of a recorded training of a small ViT-Adapter.

Imports nothing of jaxseg: `train_in_float64.py` changes a type before anything of it is imported.
"""

from ml_collections import ConfigDict

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


def config_of(recording, dtype):
    """Model and optimizer as recorded, computed in `dtype`."""
    meta = recording.json("meta")
    classes = {"num_classes": meta["num_classes"], "dropout": 0.0}
    channels = recording["final/value/decode_head.conv_seg.weight"].shape[1]
    aux_channels = recording["final/value/auxiliary_head.convs.0.bn.running_mean"].shape[0]
    settings = {
        "seed": meta["seed"],
        "steps": meta["max_iters"],
        "loss": {"auxiliary_weight": AUXILIARY_WEIGHT},
        "model": {
            "dtype": dtype,
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
