"""The config and the batches of a recorded training of a small ViT-Adapter."""

import json
import re

from ml_collections import ConfigDict

from jaxseg.recipes.base import BASE

# The original's name of a setting and the one here, where they differ.
NAMES = {"drop_path_rate": "drop_path", "n_points": "num_points", "cffn_ratio": "ffn_ratio"}
AUXILIARY_WEIGHT = 0.4  # of the published recipes; the recordings do not say
# The head of mask2former_tiny, whose note has it in words; the notes of others have it in JSON.
IN_WORDS = {"ch": 32, "q": 10, "heads": 4, "groups": 8, "ffn": 64, "enc": 6, "dec": 9}
IN_WORDS |= {"num_points": 64}


def is_mask2former(recording):
    """Or else it is UperNet, for whose loss nothing was drawn."""
    return "rand/seed" in recording


def backbone_of(settings):
    """The config of the recorded backbone; a setting that is not known here fails in its class."""
    settings = {NAMES.get(name, name): value for name, value in settings.items()}
    image_size, patch_size = settings.pop("img_size"), settings.pop("patch_size")
    if settings.pop("use_rel_pos_bias", False):
        assert settings.pop("qkv_bias")
        assert not settings.pop("use_abs_pos_emb")
        settings["layer_scale"] = settings.pop("init_values")
        settings["window"] = (image_size // patch_size,) * 2
        return {"kind": "beit_adapter", **settings}
    settings["pretrain_grid"] = settings.pop("pretrain_size") // patch_size
    assert not any(settings.pop("window_attn") + settings.pop("window_size"))
    return {"kind": "vit_adapter", **settings}


def uper_heads(recording, num_classes):
    """UperNet and the auxiliary FCN; and the settings of their loss."""
    classes = {"num_classes": num_classes, "dropout": 0.0}
    channels = recording["final/value/decode_head.conv_seg.weight"].shape[1]
    aux_channels = recording["final/value/auxiliary_head.convs.0.bn.running_mean"].shape[0]
    return {
        "decode_head": {"kind": "upernet", "channels": channels, **classes},
        "auxiliary_head": {"kind": "fcn", "channels": aux_channels, **classes},
    }, {"auxiliary_weight": AUXILIARY_WEIGHT}


def mask2former_head(note, num_classes):
    """Mask2Former as the recording notes it; and the settings of its loss."""
    in_json = re.search(r"{.*?}", note)
    noted = json.loads(in_json[0]) if in_json else IN_WORDS
    head = {
        "kind": "mask2former",
        "num_classes": num_classes,
        "channels": noted["ch"],
        "num_queries": noted["q"],
        "num_heads": noted["heads"],
        "encoder_layers": noted["enc"],
        "encoder_ffn_dim": noted["ffn"],
        "decoder_layers": noted["dec"],
        "decoder_ffn_dim": noted["ffn"],
        "norm_groups": noted["groups"],
    }
    loss = {"num_points": noted["num_points"], "max_targets": num_classes}
    return {"decode_head": head, "auxiliary_head": None}, {"mask2former": loss}


def config_of(recording, dtype):
    """Model and optimizer as recorded, computed in `dtype`."""
    meta = recording.json("meta")
    if is_mask2former(recording):
        heads, loss = mask2former_head(meta["note"], meta["num_classes"])
    else:
        heads, loss = uper_heads(recording, meta["num_classes"])
    settings = {
        "seed": meta["seed"],
        "steps": meta["max_iters"],
        "loss": BASE["loss"] | loss,
        "sharding": (),
        "model": {"dtype": dtype, "backbone": backbone_of(meta["backbone"]), **heads},
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
            "freeze": "",
            "schedule": "polynomial",
            "frozen_dtype": "float32",
            "lora": BASE["optim"]["lora"],
            "ema_decay": 0.0,
        },
    }
    return ConfigDict(settings)


def batches_of(recording):
    """Images [b,3,h,w] and labels [b,h,w] of every step: the recorded batches in turn."""
    images, labels = recording["inputs/images"], recording["inputs/labels"]
    steps = range(recording.json("meta")["steps"])
    return [(images[k % len(images)], labels[k % len(labels)]) for k in steps]
