"""Every recorded module of Mask2Former; its attention masks; its names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_modules import VALUES, check_module, first, last
from reference_files import REFERENCE, Recording, recordings, relative_error

from converters import rules
from jaxseg import paths
from jaxseg.models.mask2former_head import Mask2FormerHead, MaskPredictions, blocked_by
from jaxseg.models.pixel_decoder import MSDeformAttnPixelDecoder
from jaxseg.models.sine_positions import sine_positions

pytestmark = pytest.mark.reference

KINDS = ("Mask2Former", "MSDeformAttnPixelDecoder", "SinePositional")
FILES = [path for path in recordings("vit_adapter/modules") if path.stem.startswith(KINDS)]
MANIFESTS = sorted((REFERENCE / "vit_adapter" / "manifests").glob("mask2former_*.json"))


def pixel_decoder_of(original):
    """The pixel decoder here of an original head."""
    decoder = original["pixel_decoder"]
    layer = decoder["encoder"]["transformerlayers"]
    return {
        "num_layers": decoder["encoder"]["num_layers"],
        "num_heads": layer["attn_cfgs"]["num_heads"],
        "num_points": layer["attn_cfgs"]["num_points"],
        "ffn_dim": layer["ffn_cfgs"]["feedforward_channels"],
        "norm_groups": decoder["norm_cfg"]["num_groups"],
    }


def head_of(original):
    """The head here with the settings of an original one."""
    encoder, decoder = pixel_decoder_of(original), original["transformer_decoder"]
    layer = decoder["transformerlayers"]
    assert original["out_channels"] == original["feat_channels"]
    assert layer["attn_cfgs"]["num_heads"] == encoder["num_heads"]
    return Mask2FormerHead(
        num_classes=original["num_things_classes"] + original["num_stuff_classes"],
        channels=original["feat_channels"],
        num_queries=original["num_queries"],
        num_heads=encoder["num_heads"],
        num_points=encoder["num_points"],
        encoder_layers=encoder["num_layers"],
        encoder_ffn_dim=encoder["ffn_dim"],
        decoder_layers=decoder["num_layers"],
        decoder_ffn_dim=layer["feedforward_channels"],
        norm_groups=encoder["norm_groups"],
    )


def check_sine_positions(recording):
    for case in sorted({name.split("/")[0] for name in recording.arrays}):
        num_feats, batch, *hw = recording[f"{case}/size"].tolist()
        positions = sine_positions(hw, 2 * num_feats)
        assert positions.dtype == jnp.float32
        output = first(jnp.broadcast_to(positions, (batch, *positions.shape)))
        assert relative_error(output, recording[f"{case}/outputs/out"]) < VALUES, case


def check_pixel_decoder(recording):
    def compute(meta, run, inputs):
        original = meta["head"]
        module = MSDeformAttnPixelDecoder(original["feat_channels"], **pixel_decoder_of(original))
        mask_features, maps = run(module, [last(x) for x in inputs.values()])
        outputs = {f"memory{i}": first(x) for i, x in enumerate(maps)}
        return {"mask_feature": first(mask_features)} | outputs

    check_module(recording, compute)


def check_head(recording):
    """Also the masks between its layers, and the semantic map."""

    def compute(meta, run, inputs):
        head = head_of(meta["head"])
        predictions = run(head, [last(x) for x in inputs.values()], meta["train"])
        outputs = {f"cls{i}": x for i, x in enumerate(predictions.class_logits)}
        return outputs | {f"mask{i}": x for i, x in enumerate(predictions.mask_logits)}

    check_module(recording, compute)

    outputs, meta = recording.group("outputs/"), recording.json("meta")
    count = len(outputs) // 2
    mask_logits = np.stack([outputs[f"mask{i}"] for i in range(count)])
    class_logits = np.stack([outputs[f"cls{i}"] for i in range(count)])
    predictions = MaskPredictions(jnp.asarray(class_logits), jnp.asarray(mask_logits))
    expected = recording["seg_from_forward_test"]
    assert relative_error(first(predictions.semantic()), expected) < VALUES

    heads = meta["head"]["transformer_decoder"]["transformerlayers"]["attn_cfgs"]["num_heads"]
    coarse_to_fine = [x.shape[2:] for x in recording.group("inputs/").values()][:0:-1]
    for i in range(count):
        shape = recording[f"attn_mask/{i}/shape"]
        bits = np.unpackbits(recording[f"attn_mask/{i}/packed"], count=np.prod(shape))
        outside = bits.reshape(shape)[::heads].astype(bool)  # the same for all heads
        empty = outside.all(axis=-1, keepdims=True)
        assert empty.sum() * heads == recording["fully_masked_rows"][i]
        blocked = blocked_by(predictions.mask_logits[i], coarse_to_fine[i % len(coarse_to_fine)])
        np.testing.assert_array_equal(blocked, outside & ~empty)


CHECKS = {
    "Mask2FormerHead": check_head,
    "MSDeformAttnPixelDecoder": check_pixel_decoder,
    "SinePositionalEncoding": check_sine_positions,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_module_equals_the_reference(path):
    leading = max((n for n in CHECKS if path.stem.startswith(n)), key=len, default=None)
    assert leading, f"{path.name}: nothing here knows how to check it"
    CHECKS[leading](Recording(path))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_tensor_of_the_original_head_has_its_place(path):
    manifest = json.loads(path.read_text())
    original = manifest["resolved"]["model"]["decode_head"]
    recorded = {
        name.removeprefix("decode_head."): tuple(shape)
        for name, (_, *shape) in manifest["state_dict"].items()
        if name.startswith("decode_head.")
    }
    maps = [
        jnp.zeros((1, 16 // stride, 16 // stride, channels))
        for stride, channels in zip((1, 2, 4, 8), original["in_channels"], strict=True)
    ]
    head = head_of(original)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), maps, train=False))
    variables = paths.shapes(shapes)
    assert {rules.to_name(p): rules.channels_first_shape(s, p) for p, s in variables.items()} == (
        recorded
    )
    assert {rules.to_path(name, len(shape)) for name, shape in recorded.items()} == set(variables)
