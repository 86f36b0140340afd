"""Every recorded module of DINOv3's segmentors: values, gradients, batch statistics."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from converters import dinov3 as names
from jaxseg.models.backbones import dinov3
from jaxseg.models.backbones.dinov3_adapter import DINOv3Adapter, Extraction
from jaxseg.models.backbones.vit_adapter import Extractor, SpatialPriorModule
from jaxseg.models.heads.linear_head import LinearHead
from jaxseg.models.heads.mask2former_head import Mask2FormerHead
from jaxseg.models.heads.pixel_decoder import MSDeformAttnPixelDecoder
from jaxseg.models.heads.sine_positions import sine_positions
from jaxseg.models.layers import Classifier
from jaxseg.ops import rotary
from jaxseg.ops.resize import resize_bilinear
from support.recorded_dinov3 import adapter_of, head_of, transformer_of
from support.recorded_modules import VALUES, check_module, first, last
from support.reference_files import Recording, recordings, relative_error

pytestmark = pytest.mark.reference

# With tests of their own.
OTHERS = ("slide_inference", "tta_inference", "image_resize")
# What is as another one, with other sizes.
SLOW = (
    "Mask2FormerHead_tiny_nine",
    "DINOv3_Adapter_tiny_train",
    "InteractionBlockWithCls_r05_extra",
)
FILES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.full] * (path.stem in SLOW))
    for path in recordings("dinov3/modules")
    if not path.stem.startswith(OTHERS)
]


def check_rotary_positions(recording):
    for case, settings in enumerate(recording.json("__index__")):
        group = recording.group(f"{case}/")
        periods = group["periods"]
        if not settings.get("bf16_periods"):
            limits = settings.get("min_period"), settings.get("max_period")
            made = rotary.rotary_periods(
                settings["head_dim"], limits=limits if all(limits) else None
            )
            assert relative_error(made, periods) < VALUES
        hw = settings["H"], settings["W"]
        coordinates = rotary.patch_coordinates(hw, settings.get("normalize_coords", "separate"))
        coordinates = coordinates + group.get("draws/shift", np.float32(0))
        for factor in ("log_jitter", "log_rescale"):
            coordinates = coordinates * np.exp(group.get(f"draws/{factor}", np.float32(0)))
        sin, cos = rotary.rotary_table(coordinates, periods)
        assert relative_error(sin, group["outputs/sin"]) < VALUES
        assert relative_error(cos, group["outputs/cos"]) < VALUES


def check_sine_positions(recording):
    for case in sorted({name.split("/")[0] for name in recording.arrays}):
        width, batch, *hw = recording[f"{case}/size"].tolist()
        positions = jnp.broadcast_to(sine_positions(hw, 2 * width), (batch, *hw, 2 * width))
        assert relative_error(first(positions), recording[f"{case}/outputs/out"]) < VALUES, case


def table_of(meta):
    """The table of a grid of H × W patches, or None without rotation."""
    if not meta["H"]:
        return None
    coordinates = rotary.patch_coordinates((meta["H"], meta["W"]))
    return rotary.rotary_table(coordinates, rotary.rotary_periods(meta["dim"] // meta["heads"]))


def attention(meta, run, inputs):
    module = dinov3.DINOv3Attention(meta["heads"], meta["qkv_bias"], meta["mask_k_bias"])
    return {"out": run(module, inputs["x"], table_of(meta))}


def block(meta, run, inputs):
    module = dinov3.DINOv3Block(
        meta["heads"],
        meta["ffn_layer"],
        meta["ffn_ratio"],
        meta["init_values"],
        meta["qkv_bias"],
        epsilon={"layernorm": 1e-6, "layernormbf16": 1e-5}[meta["norm_layer"]],
    )
    return {"out": run(module, inputs["x"], table_of(meta))}


class AllTokens(dinov3.DINOv3):
    """Also with the class token and the storage tokens, which heads do not take."""

    @nn.compact
    def __call__(self, images):
        return self.intermediate(images, self.out_indices, False)


def transformer(meta, run, inputs):
    module = AllTokens(**transformer_of(meta), out_indices=meta["layers"])
    outputs = {}
    for i, tokens in enumerate(run(module, last(inputs["x"]))):
        outputs |= {f"f{i}": first(tokens.patches), f"cls{i}": tokens.class_token}
        outputs[f"extra{i}"] = tokens.storage_tokens
    return outputs


def grids(meta):
    h, w = meta["H"], meta["W"]
    return (h, w), ((2 * h, 2 * w), (h, w), (h // 2, w // 2))


def extractor(meta, run, inputs):
    module = Extractor(meta["heads"], 4, meta["deform_ratio"])
    return {"out": run(module, inputs["query"], inputs["feat"], *grids(meta), False)}


def interaction(meta, run, inputs):
    module = Extraction(
        meta["heads"], ratio=meta["deform_ratio"], extra_extractors=2 * meta["extra_extractor"]
    )
    c = run(module, inputs["c"], inputs["x"], *grids(meta), False)
    return {"x": inputs["x"], "cls": inputs["cls"], "c": c}


def spatial_prior(meta, run, inputs):
    module = SpatialPriorModule(meta["inplanes"], meta["embed_dim"])
    c1, *coarser = run(module, last(inputs["x"]), meta["train"])
    tokens = {f"c{i}": x.reshape(x.shape[0], -1, x.shape[3]) for i, x in enumerate(coarser, 2)}
    return {"c1": first(c1)} | tokens


class FrozenTransformer(DINOv3Adapter):
    """The original always computes the transformer without gradients."""

    def intermediate(self, images, indices, train):
        return super().intermediate(lax.stop_gradient(images), indices, False)


def adapter(meta, run, inputs):
    features = run(FrozenTransformer(**adapter_of(meta)), last(inputs["x"]), meta["train"])
    return {f"f{i}": first(x) for i, x in enumerate(features, start=1)}


def pixel_decoder(meta, run, inputs):
    settings = meta["head"]
    module = MSDeformAttnPixelDecoder(
        settings["hidden_dim"],
        settings["encoder_layers"],
        settings["encoder_heads"],
        ffn_dim=settings["encoder_ffn"],
    )
    mask_features, maps = run(module, [last(x) for x in inputs.values()])
    outputs = {f"memory{i}": first(x) for i, x in enumerate(maps)}
    return {"mask_feature": first(mask_features)} | outputs


def mask2former(meta, run, inputs):
    head = Mask2FormerHead(**head_of(meta["head"]))
    predictions = run(head, [last(x) for x in inputs.values()], meta["train"])
    outputs = {f"cls{i}": x for i, x in enumerate(predictions.class_logits)}
    return outputs | {f"mask{i}": x for i, x in enumerate(predictions.mask_logits)}


def linear_head(meta, run, inputs):
    maps = []
    for i in range(len(meta["in_channels"])):
        maps.append(last(inputs[f"f{i}"]))
        if f"cls{i}" in inputs:  # repeated over the map
            token = inputs[f"cls{i}"][:, None, None]
            maps.append(jnp.broadcast_to(token, maps[-1].shape))
    if meta.get("use_batchnorm", True):
        head = LinearHead(meta["num_classes"], tuple(range(len(maps))), dropout=0.0)
        logits = run(head, maps, meta["train"])
    else:
        logits = run(Convolution(meta["num_classes"]), maps)
    outputs = {"out": first(logits)}
    if meta["rescale_to"]:
        outputs["predict"] = first(resize_bilinear(logits, meta["rescale_to"]))
    return outputs


class Convolution(nn.Module):
    """The linear head without batch norm, which no model uses."""

    num_classes: int

    @nn.compact
    def __call__(self, maps):
        classify = Classifier(self.num_classes, 0.0, name="conv_seg")
        return classify(jnp.concatenate(maps, axis=-1), False)


def rename_of_decoder(name):
    return names.renamed(f"pixel_decoder.{name}", names.HEAD).removeprefix("pixel_decoder.")


def rename_of_head(name):
    return names.renamed(name, names.HEAD)


CHECKS = {  # what computes the outputs, and the names of its parameters
    "SelfAttention": (attention, str),
    "SelfAttentionBlock": (block, str),
    "DinoVisionTransformer": (transformer, str),
    "SpatialPriorModule": (spatial_prior, str),
    "Extractor": (extractor, str),
    "InteractionBlockWithCls": (interaction, str),
    "DINOv3_Adapter": (adapter, lambda name: name.removeprefix("backbone.")),
    "MSDeformAttnPixelDecoder": (pixel_decoder, rename_of_decoder),
    "Mask2FormerHead": (mask2former, rename_of_head),
    "LinearHead": (linear_head, rename_of_head),
}
# In training, batch norm subtracts what these add. Group norm does, too, where a group is a channel
# of a few cells, and then depends little on the cells themselves.
CANCELLED = {
    "DINOv3_Adapter": ("up.bias", "spm.fc1.bias"),
    "Mask2FormerHead": (
        "f4",
        "pixel_decoder.input_convs.0.0.weight",
        *(
            f"pixel_decoder.{conv}.bias"
            for conv in ("input_convs.0.0", "input_convs.1.0", "input_convs.2.0")
        ),
    ),
}
FUNCTIONS = {
    "RopePositionEmbedding": check_rotary_positions,
    "PositionEmbeddingSine": check_sine_positions,
    **{
        name: functools.partial(
            check_module, compute=compute, rename=rename, cancelled=CANCELLED.get(name, ())
        )
        for name, (compute, rename) in CHECKS.items()
    },
}


@pytest.mark.parametrize("path", FILES)
def test_module_equals_the_reference(path):
    leading = max((n for n in FUNCTIONS if path.stem.startswith(n)), key=len, default=None)
    assert leading, f"{path.name}: nothing here knows how to check it"
    FUNCTIONS[leading](Recording(path))
