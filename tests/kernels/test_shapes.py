"""The table of calls is what the models call; the benchmark runs over it."""

import json

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from jaxseg.config import load_config
from jaxseg.models.segmentation_model import apply_model, build_model, variable_shapes
from pallas_kernels import bench, shapes

CITYSCAPES, ADE20K = "configs/cityscapes.py:", "configs/ade20k.py:"
MODELS = [
    (CITYSCAPES + "upernet_internimage_t", (512, 1024), ["internimage_t"]),
    (
        ADE20K + "mask2former_beit_adapter_l",
        (640, 640),
        ["vit_adapter_l", "beit_l", "pixel_decoder_1024"],
    ),
    (ADE20K + "upernet_deit_adapter_s", (512, 512), ["vit_adapter_s", "vit_s"]),
    *((ADE20K + f"upernet_internimage_{s}", (896, 896), [f"internimage_{s}"]) for s in "hg"),
    *((CITYSCAPES + f"upernet_internimage_{s}", (512, 1024), [f"internimage_{s}"]) for s in "sbl"),
    (CITYSCAPES + "upernet_internimage_xl", (512, 1024), ["internimage_xl"]),
    (ADE20K + "upernet_deit_adapter_t", (512, 512), ["vit_adapter_t", "vit_t"]),
    (
        "configs/coco_stuff10k.py:mask2former_beit_adapter_b",
        (512, 512),
        ["vit_adapter_b", "beit_b", "pixel_decoder_256"],
    ),
]


@pytest.mark.parametrize(
    ("recipe", "hw", "names"),
    [pytest.param(*row, marks=[pytest.mark.full] * (i > 1)) for i, row in enumerate(MODELS)],
)
def test_table_is_what_the_models_call(recipe, hw, names, monkeypatch):
    called = set()

    def dcnv3(value, offset, mask, *, groups, **settings):
        height, width, channels = value.shape[1:]
        called.add(shapes.DCNv3(height, width, groups, channels // groups))
        return value

    def ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights, **settings):
        _, queries, heads, _, points = attention_weights.shape
        channels = value.shape[-1]
        called.add(shapes.MSDeformAttn(queries, tuple(spatial_shapes), heads, channels, points))
        return jnp.zeros((len(value), queries, heads * channels), value.dtype)

    def self_attention(qkv, table=None, *, num_heads, grid=None, **settings):
        _, tokens, width = qkv.shape
        called.add(shapes.SelfAttention(tokens, num_heads, width // 3 // num_heads, grid))
        return qkv[..., : width // 3]

    monkeypatch.setattr(pallas_kernels, "dcnv3", dcnv3)
    monkeypatch.setattr(pallas_kernels, "self_attention", self_attention)
    monkeypatch.setattr(pallas_kernels, "ms_deform_attn", ms_deform_attn)
    model = build_model(load_config(recipe).model)
    images = jax.ShapeDtypeStruct((1, *hw, 3), jnp.float32)
    variables = variable_shapes(model)
    called.clear()
    jax.eval_shape(lambda v, x: apply_model(model, v, x), variables, images)
    assert called == {call for name in names for call in shapes.calls(name, hw).values()}
    assert all(hw in shapes.INPUTS[name] for name in names)


def test_benchmark_times_every_direction(tmp_path, capsys):
    file = tmp_path / "table.json"
    bench.main(
        ["--shapes", "vit_adapter_l 128x128 extractor", "--dtype", "float32", "--batch", "1"]
        + ["--implementation", "xla", "--json", str(file)]
    )
    rows = json.loads(file.read_text())["rows"]
    assert [row["direction"] for row in rows] == ["forward", "backward"]
    assert all(row["milliseconds"] > 0 for row in rows)
    # value, locations and weights of 84·4 rows, and the output: 16 heads of 32 channels, 4 points
    least = 4 * (64 * 512 + 336 * 16 * 4 * 3 + 336 * 512)
    assert rows[0]["least_megabytes"] == round(least / 1e6, 1)
    assert "of_bandwidth" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no shape matches"):
        bench.main(["--shapes", "nothing"])
