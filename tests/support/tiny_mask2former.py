"""A Mask2Former small enough to learn street scenes in minutes on two CPU cores; for --config."""

from jaxseg.recipes import base, dinov3, internimage

BACKBONE = {
    **internimage.backbone("t"),
    "channels": 32,
    "depths": (1, 1, 2, 1),
    "groups": (2, 4, 8, 16),
    "drop_path": 0.0,
}
HEAD = {
    "channels": 64,
    "num_heads": 4,
    "encoder_layers": 1,
    "encoder_ffn_dim": 128,
    "decoder_layers": 3,
    "decoder_ffn_dim": 128,
    "norm_groups": 8,
}
SETTINGS = {
    "steps": 200,
    "batch_size": 12,
    "model": base.mask2former(BACKBONE, num_classes=19, num_queries=20, size=HEAD),
    "data": {
        "scale_wh": (256, 128),
        "ratio_range": (0.9, 1.2),
        "crop_hw": (128, 256),
        "test_scale_wh": (256, 128),
        "workers": 1,
    },
    "loss": {"mask2former": {"num_points": 1024, "max_targets": 19}},
    "optim": {"lr": 2e-3, "warmup_steps": 20, "clip_norm": 0.01},
    "checkpoint": {"every_steps": 200},
    "eval": {"every_steps": 200},
    "log_steps": 20,
}


TRANSFORMER = {
    **dinov3.adapter("vits16"),
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 2,
    "interaction_indexes": (0, 1, 2, 3),
    "conv_inplane": 32,
    "deform_num_heads": 4,
    "drop_path": 0.0,
}
OF_DINOV3 = {
    **SETTINGS,
    "data": {**SETTINGS["data"], "test_multiple": 32},
    "model": base.mask2former(
        TRANSFORMER, num_classes=19, num_queries=20, size={**HEAD, "full_size_masks": True}
    ),
}
VARIANTS = {
    "tiny": SETTINGS,
    "dinov3": OF_DINOV3,
    "frozen_dinov3": {**OF_DINOV3, "optim": {**SETTINGS["optim"], "freeze": dinov3.TRANSFORMER}},
}


def get_config(variant="tiny"):
    return base.recipe(variant, VARIANTS)
