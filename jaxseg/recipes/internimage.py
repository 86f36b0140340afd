"""Holds the sizes of InternImage and the settings that its published runs share."""

from typing import Any

from jaxseg.recipes import base

# H and G have no layer scale, more norms, a 5×5 depthwise kernel and the center feature scale.
HUGE = {
    "layer_scale": None,
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "drop_path": 0.5,
}
SIZES = {
    "t": {
        "channels": 64,
        "depths": (4, 4, 18, 4),
        "groups": (4, 8, 16, 32),
        "drop_path": 0.2,
        "post_norm": False,
    },
    "s": {
        "channels": 80,
        "depths": (4, 4, 21, 4),
        "groups": (5, 10, 20, 40),
        "drop_path": 0.3,
    },
    "b": {
        "channels": 112,
        "depths": (4, 4, 21, 4),
        "groups": (7, 14, 28, 56),
        "drop_path": 0.4,
    },
    "l": {
        "channels": 160,
        "depths": (5, 5, 22, 5),
        "groups": (10, 20, 40, 80),
        "drop_path": 0.4,
        "offset_scale": 2.0,
        "remat": True,
    },
    "xl": {
        "channels": 192,
        "depths": (5, 5, 24, 5),
        "groups": (12, 24, 48, 96),
        "drop_path": 0.4,
        "offset_scale": 2.0,
        "remat": True,
    },
    "h": {
        **HUGE,
        "channels": 320,
        "depths": (6, 6, 32, 6),
        "groups": (10, 20, 40, 80),
        "post_norm": False,
        "res_post_norm": True,
        "level2_post_norm_after": tuple(range(5, 32, 6)),
        "remat": True,
    },
    "g": {
        **HUGE,
        "channels": 512,
        "depths": (2, 2, 48, 4),
        "groups": (16, 32, 64, 128),
        "level2_post_norm_after": tuple(range(5, 48, 6)),
        "remat": True,
    },
}
# The optimizer settings of each size, and the ImageNet weights it starts from.
OPTIM = {
    "t": {},
    "s": {},
    "b": {},
    "l": {"lr": 2e-5, "layer_decay": 0.94, "clip_norm": 0.1},
    "xl": {"lr": 2e-5, "layer_decay": 0.94, "clip_norm": 0.1},
    "h": {"lr": 2e-5, "layer_decay": 0.95, "clip_norm": 0.1},
    "g": {"lr": 2e-5, "layer_decay": 0.95, "clip_norm": 0.1},
}
INIT = {
    "t": "zoo:internimage_t_1k_224",
    "s": "zoo:internimage_s_1k_224",
    "b": "zoo:internimage_b_1k_224",
    "l": "zoo:internimage_l_22k_192to384",
    "xl": "zoo:internimage_xl_22k_192to384",
    "h": "zoo:internimage_h_jointto22k_384",
    "g": "zoo:internimage_g_pretrainto22k_384",
}


def backbone(size: str) -> dict[str, Any]:
    """Returns the settings of an InternImage backbone.

    Args:
      size: a published size, a key of `SIZES`.
    """
    return {
        "kind": "internimage",
        "mlp_ratio": 4.0,
        "layer_scale": 1.0,
        "offset_scale": 1.0,
        "post_norm": True,
        "remat": False,
        "remat_keeps": "kernels",  # or "nothing", "matmuls", "matmuls_on_host"
        **SIZES[size],
    }


def upernet(size: str) -> dict[str, Any]:
    """Returns UPerNet on InternImage with the settings that its published runs share.

    The heads have 150 outputs on every dataset.
    """
    return _published(base.upernet(backbone(size), num_classes=150), size)


def segformer(size: str) -> dict[str, Any]:
    """Returns a SegFormer head on InternImage with the settings that its published runs share.

    The head has 150 outputs on every dataset.
    """
    return _published(base.segformer(backbone(size), num_classes=150), size)


def linear(size: str, num_classes: int) -> dict[str, Any]:
    """Returns a linear head on InternImage with the optimizer of its published runs."""
    return _published(base.linear(backbone(size), num_classes), size)


def mask2former(
    num_classes: int,
    num_queries: int = 100,
    head: dict[str, int] = base.NARROW,
    size: str = "h",
    **optim: float,
) -> dict[str, Any]:
    """Returns Mask2Former on InternImage with the settings that its published runs share.

    Published are runs on InternImage-H.

    Args:
      num_classes: the number of classes.
      num_queries: the number of queries.
      head: `base.NARROW` or `base.WIDE`.
      size: the size of InternImage, a key of `SIZES`.
      **optim: optimizer settings that differ from the shared ones.
    """
    model = base.mask2former(backbone(size), num_classes, num_queries, head)
    recipe = _published(model, size)
    return {**recipe, "optim": recipe["optim"] | optim}


def _published(model, size):
    return {"model": model, "optim": OPTIM[size], "init": INIT[size]}
