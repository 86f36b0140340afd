"""Holds DINOv2's transformers with a linear head (arXiv:2304.07193).

The transformer is frozen. The training is that of DINOv3's linear head. Crops and windows have the
size of the pre-training's last images, so that the positions are not resized.
"""

from typing import Any

from jaxseg.recipes import dinov3

SIZES = {
    "vits14": {"embed_dim": 384, "depth": 12, "num_heads": 6, "ffn": "mlp"},
    "vitb14": {"embed_dim": 768, "depth": 12, "num_heads": 12, "ffn": "mlp"},
    "vitl14": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "ffn": "mlp"},
    "vitg14": {"embed_dim": 1536, "depth": 40, "num_heads": 24, "ffn": "swiglufused"},
}
REGISTERS = {"": 0, "_reg": 4}  # end of a name -> the number of registers
BACKBONES = {
    f"{size}{end}": {**settings, "storage_tokens": count}
    for size, settings in SIZES.items()
    for end, count in REGISTERS.items()
}
CROP = 518  # 37 patches


def transformer(name: str) -> dict[str, Any]:
    """Returns the settings of one of `BACKBONES`, with the features of its last block."""
    backbone = BACKBONES[name]
    return {
        "kind": "dinov2",
        **backbone,
        "ffn_ratio": 4.0,
        "remat": False,
        "remat_keeps": "kernels",
        "out_indices": (backbone["depth"] - 1,),
    }


def linear(name: str, num_classes: int, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the linear head on one of `BACKBONES`.

    Args:
      name: a key of `BACKBONES`.
      num_classes: the number of outputs.
      data: the data settings, with crops of `CROP`.
    """
    return dinov3.linear_on(
        transformer(name),
        num_classes,
        data,
        eval_settings=dinov3.evaluation(CROP, 2 * CROP // 3),
        weights=f"zoo:dinov2_{name}",
    )
