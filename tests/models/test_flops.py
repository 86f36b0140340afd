"""What is counted for transformers. (InternImage's counts are compared with recorded ones.)"""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.models import deformable_attention, flops, layers
from jaxseg.models.backbones import beit, uniperceiver, vit
from jaxseg.models.segmentation_model import build_model

TRANSFORMER = {"embed_dim": 8, "depth": 4, "num_heads": 2}
COMPANION = {"interaction_indexes": ((0, 3),), "deform_num_heads": 2, "add_vit_feature": False}
BACKBONES = {
    "vit_adapter": COMPANION | {"window": 3, "window_blocks": (1,)},
    "uniperceiver_adapter": COMPANION,
    "beit_adapter": COMPANION | {"window": (4, 4)},
    "beit": {"window": (4, 4), "out_indices": (0, 1, 2, 3)},
    "dinov3": {"out_indices": (0, 1, 2, 3)},
}


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("remat", [False, True])
def test_every_transformer_is_counted(kind, remat):
    backbone = {"kind": kind, "remat": remat, **TRANSFORMER, **BACKBONES[kind]}
    head = {"kind": "upernet", "num_classes": 5, "channels": 16}
    if kind == "dinov3":
        head = {"kind": "linear", "num_classes": 5}
    model = {"dtype": "float32", "backbone": backbone, "decode_head": head, "auxiliary_head": None}
    counts = flops.count_flops(build_model(model), (64, 64))
    name = "layers_3" if kind == "uniperceiver_adapter" else "blocks_3"
    attention = "self_attn" if kind == "uniperceiver_adapter" else "attn"
    tokens = 16 + kind.startswith("beit") + 5 * (kind == "dinov3")
    assert counts["backbone", name, attention] == 2 * tokens**2 * 8
    patches = ("visual_embed",) if kind == "uniperceiver_adapter" else ()
    assert counts["backbone", *patches, "patch_embed", "proj"] == 16 * 8 * (3 * 16**2 + 1)


@pytest.mark.parametrize(
    "kind", [vit.ViTAttention, beit.BEiTAttention, uniperceiver.UniPerceiverAttention]
)
def test_attention_counts_its_two_products(kind):
    x = struct(1, 12, 8)
    assert flops.count_module(kind(2, None), (x, (3, 4)), x) == 2 * 12 * 12 * 8


def test_windowed_attention_counts_its_windows_with_what_fills_them_up():
    x = struct(2, 20, 8)
    module = vit.ViTAttention(2, window=3)  # 2 × 2 windows of 9 tokens cover 4 × 5
    assert flops.count_module(module, (x, (4, 5)), x) == 2 * 2 * 4 * 9 * 9 * 8


def test_deformable_attention_counts_five_for_every_sampled_value():
    query, pyramid = struct(1, 20, 8), ((8, 10), (4, 5), (2, 2))
    module = deformable_attention.MSDeformAttn(2, num_points=4, ratio=0.5)
    inputs = (query, struct(1, 20, 1, 2), struct(1, 104, 8), pyramid)
    assert flops.count_module(module, inputs, query) == 5 * 20 * (3 * 4) * 4


def test_transposed_convolution_counts_each_output_once():
    x, enlarged = struct(1, 4, 4, 8), struct(1, 8, 8, 8)
    assert flops.count_module(layers.Upsample(), (x,), enlarged) == enlarged.size * (8 + 1)
