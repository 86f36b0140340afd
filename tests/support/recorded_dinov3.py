"""The fields of the models of DINOv3 that were recorded."""


def transformer_of(settings):
    """The fields of a recorded transformer."""
    assert settings["norm_layer"] == "layernormbf16"
    assert settings["pos_embed_rope_normalize_coords"] == "separate"
    return {
        "embed_dim": settings["embed_dim"],
        "depth": settings["depth"],
        "num_heads": settings["num_heads"],
        "ffn": settings["ffn_layer"],
        "ffn_ratio": settings["ffn_ratio"],
        "storage_tokens": settings["n_storage_tokens"],
        "use_bias": settings["qkv_bias"],
        "patch": settings["patch_size"],
        "final_norm": settings.get("norm", True),
        "untied_norms": settings.get("untie_cls_and_patch_norms", False),
    }


def adapter_of(meta):
    return transformer_of(meta["backbone"]) | {
        "interaction_indexes": meta["interaction_indexes"],
        "conv_inplane": meta["conv_inplane"],
        "deform_num_heads": meta["deform_num_heads"],
        "deform_ratio": meta["deform_ratio"],
        "drop_path": 0.0,
    }


def head_of(settings):
    """The fields of a recorded Mask2Former."""
    return {
        "num_classes": settings["num_classes"],
        "channels": settings["hidden_dim"],
        "num_queries": settings["num_queries"],
        "num_heads": settings["decoder_heads"],
        "encoder_layers": settings["encoder_layers"],
        "encoder_ffn_dim": settings["encoder_ffn"],
        "decoder_layers": settings["decoder_layers"],
        "decoder_ffn_dim": settings["decoder_ffn"],
    }
