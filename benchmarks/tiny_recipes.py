"""The recipes with models that compile on a CPU in seconds, for dry runs of benchmarks.

--config benchmarks/tiny_recipes.py:cityscapes.upernet_internimage_t
"""

import importlib

SIDE = 64
BACKBONES = {
    "internimage": {"channels": 8, "depths": (1, 1), "groups": (1, 2)},
    "vit_adapter": {
        "embed_dim": 12,
        "depth": 1,
        "num_heads": 3,
        "interaction_indexes": ((0, 0),),
        "deform_num_heads": 3,
        "conv_inplane": 4,
        "add_vit_feature": False,
        "extra_extractors": 0,
    },
}
BACKBONES["beit_adapter"] = {**BACKBONES["vit_adapter"], "window": (4, 4)}
SEGFORMER = {"kind": "segformer", "channels": 8, "dropout": 0.0}
MASK2FORMER = {
    "channels": 16,
    "num_queries": 8,
    "num_heads": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_layers": 1,
    "decoder_ffn_dim": 16,
    "norm_groups": 4,
}


def get_config(variant):
    dataset, _, name = variant.partition(".")
    config = importlib.import_module(f"configs.{dataset}").get_config(name)
    with config.unlocked():
        config.model.dtype = "float32"
        config.model.backbone.update(BACKBONES[config.model.backbone.kind])
        head = config.model.decode_head
        if head.kind == "mask2former":
            head.update(MASK2FORMER)
            config.loss.mask2former.update({"num_points": 16, "max_targets": 8})
        else:  # SegFormerHead replaces UPerHead, because it compiles in a third of the time
            config.model.decode_head = {**SEGFORMER, "num_classes": head.num_classes}
            config.model.auxiliary_head = None
        sizes = {"crop_hw": (SIDE, SIDE), "scale_wh": (SIDE, SIDE), "test_scale_wh": (SIDE, SIDE)}
        config.data.update(sizes)
        config.eval.update({"crop_hw": (SIDE, SIDE), "stride_hw": (SIDE, SIDE)})
    return config
