"""Every recorded module of Mask2Former; its attention masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.heads.mask2former_head import Mask2FormerHead, MaskPredictions, blocked_by
from jaxseg.models.heads.pixel_decoder import MSDeformAttnPixelDecoder
from jaxseg.models.heads.sine_positions import sine_positions
from support.published import mask2former_of
from support.recorded_modules import VALUES, check_module, first, last
from support.reference_files import Recording, recordings, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.long]

KINDS = ("Mask2Former", "MSDeformAttnPixelDecoder", "SinePositional")
SLOW = ("Mask2FormerHead_tiny_fullrows",)
FILES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.full] * (path.stem in SLOW))
    for path in recordings("vit_adapter/modules")
    if path.stem.startswith(KINDS)
]


def check_sine_positions(recording):
    for case in sorted({name.split("/")[0] for name in recording.arrays}):
        num_feats, batch, *hw = recording[f"{case}/size"].tolist()
        positions = sine_positions(hw, 2 * num_feats)
        assert positions.dtype == jnp.float32
        output = first(jnp.broadcast_to(positions, (batch, *positions.shape)))
        assert relative_error(output, recording[f"{case}/outputs/out"]) < VALUES, case


def check_pixel_decoder(recording):
    def compute(meta, run, inputs):
        options = mask2former_of(meta["head"])
        module = MSDeformAttnPixelDecoder(
            options["channels"],
            options["encoder_layers"],
            options["num_heads"],
            options["num_points"],
            options["encoder_ffn_dim"],
            options["norm_groups"],
        )
        mask_features, maps = run(module, [last(x) for x in inputs.values()])
        outputs = {f"memory{i}": first(x) for i, x in enumerate(maps)}
        return {"mask_feature": first(mask_features)} | outputs

    check_module(recording, compute)


def check_head(recording):
    """Also the masks between its layers, and the semantic map."""

    def compute(meta, run, inputs):
        head = Mask2FormerHead(**mask2former_of(meta["head"]))
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


@pytest.mark.parametrize("path", FILES)
def test_module_equals_the_reference(path):
    leading = max((n for n in CHECKS if path.stem.startswith(n)), key=len, default=None)
    assert leading, f"{path.name}: nothing here knows how to check it"
    CHECKS[leading](Recording(path))
