"""Every recorded module of the ViT-Adapter family: values, gradients, batch statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from converters import rules, verify
from jaxseg.inference.sliding_window import SlidingWindow
from jaxseg.models import deformable_attention
from jaxseg.models.backbones import beit, vit, vit_adapter
from jaxseg.models.heads.uper_head import FCNHead, UPerHead
from jaxseg.models.segmentation_model import build_model
from jaxseg.ops import convolution, resize
from pallas_kernels import KernelChoice
from pallas_kernels.tpu import attention
from support import windowed
from support.recorded_modules import GRADIENTS, VALUES, check_module, first, last
from support.recorded_vits import config_of
from support.reference_files import REFERENCE, Recording, recordings, relative_error

pytestmark = pytest.mark.reference

# With tests of their own.
OTHERS = ("Mask2Former", "MSDeformAttnPixelDecoder", "SinePositional", "ms_deform_attn_core")
FILES = [path for path in recordings("vit_adapter/modules") if not path.stem.startswith(OTHERS)]
DEFAULT = KernelChoice()


def tokens(x):
    return x.reshape(x.shape[0], -1, x.shape[-1])


def pyramid_of(meta):
    """The grids of the companion beside a ViT's grid of H × W tokens."""
    h, w = meta["H"], meta["W"]
    return (h, w), ((2 * h, 2 * w), (h, w), (h // 2, w // 2))


def vit_block(meta, run, inputs, kernels=DEFAULT):
    layer_scale = 1.0 if meta.get("layer_scale", True) else None
    block = vit.ViTBlock(
        meta["heads"], layer_scale=layer_scale, window=meta.get("window"), kernels=kernels
    )
    return {"out": run(block, inputs["x"], (meta.get("H", 0), meta.get("W", 0)), False)}


def beit_block(meta, run, inputs, kernels=DEFAULT):
    window = meta.get("window_size")
    block = beit.BEiTBlock(
        meta["heads"],
        layer_scale=meta.get("init_values"),
        window=window and tuple(window),
        kernels=kernels,
    )
    return {"out": run(block, inputs["x"], (meta["H"], meta["W"]), False)}


def conv_ffn(meta, run, inputs):
    _, pyramid = pyramid_of(meta)
    return {"out": run(vit_adapter.ConvFFN(meta["dim"] // 4), inputs["x"], pyramid)}


def ms_deform_attn(meta, run, inputs):
    pyramid = tuple(map(tuple, meta["spatial_shapes"]))
    module = deformable_attention.MSDeformAttn(meta["n_heads"], meta["n_points"], meta["ratio"])
    return {
        "out": run(module, inputs["query"], inputs["reference_points"], inputs["feat"], pyramid)
    }


def injector(meta, run, inputs):
    module = vit_adapter.Injector(meta["heads"], 4, meta["deform_ratio"], 0.0)
    return {"out": run(module, inputs["query"], inputs["feat"], *pyramid_of(meta))}


def extractor(meta, run, inputs):
    module = vit_adapter.Extractor(meta["heads"], 4, meta["deform_ratio"])
    return {"out": run(module, inputs["query"], inputs["feat"], *pyramid_of(meta), False)}


class Interaction(nn.Module):
    """An interaction block and the two blocks of a transformer between its ends."""

    meta: dict

    @nn.compact
    def __call__(self, inputs):
        meta, (hw, pyramid) = self.meta, pyramid_of(self.meta)
        heads, ratio, c = meta["block_heads"], meta["mlp_ratio"], inputs["c"]
        if "cls" in inputs:
            blocks = [beit.BEiTBlock(heads, ratio, window=hw, name=f"blocks_{i}") for i in range(2)]
        else:
            blocks = [vit.ViTBlock(heads, ratio, name=f"blocks_{i}") for i in range(2)]
        module = vit_adapter.InteractionBlock(
            meta["heads"],
            ratio=meta["deform_ratio"],
            extra_extractors=2 * meta.get("extra_extractor", False),
            name="inter",
        )
        class_token = inputs.get("cls", inputs["x"][:, :0])
        x, class_token, c = module(inputs["x"], class_token, c, blocks, hw, pyramid, False)
        return {"x": x, "cls": class_token, "c": c}


def interaction(meta, run, inputs):
    return run(Interaction(meta), inputs)


def spatial_prior(meta, run, inputs):
    module = vit_adapter.SpatialPriorModule(meta["inplanes"], meta["embed_dim"])
    c1, *coarser = run(module, last(inputs["x"]), meta["train"])
    return {"c1": first(c1)} | {f"c{i}": tokens(x) for i, x in enumerate(coarser, start=2)}


SAME = ("embed_dim", "depth", "num_heads", "deform_num_heads", "deform_ratio", "conv_inplane")


def adapter(meta, run, inputs):
    options = {name: meta[name] for name in SAME}
    indexes = tuple(map(tuple, meta["interaction_indexes"]))
    grid = meta["img_size"] // 16
    if "init_values" in meta:
        module = beit.BEiTAdapter(**options, interaction_indexes=indexes, window=(grid, grid))
    else:
        module = vit_adapter.ViTAdapter(
            **options, interaction_indexes=indexes, pretrain_grid=meta["pretrain_size"] // 16
        )
    features = run(module, last(inputs["x"]), meta["train"])
    return {f"f{i}": first(x) for i, x in enumerate(features, start=1)}


def head(kind, meta, run, inputs):
    module = kind(meta["num_classes"], meta["channels"], dropout=0.0)
    return {"out": first(run(module, [last(x) for x in inputs.values()], meta["train"]))}


CHECKS = {
    "ViTBlock": vit_block,
    "BEiTBlock": beit_block,
    "ConvFFN": conv_ffn,
    "MSDeformAttn": ms_deform_attn,
    "Injector": injector,
    "Extractor": extractor,
    "InteractionBlock": interaction,
    "InteractionBlockWithCls": interaction,
    "SpatialPriorModule": spatial_prior,
    "ViTAdapter": adapter,
    "BEiTAdapter": adapter,
    "UPerHead": functools.partial(head, UPerHead),
    "FCNHead": functools.partial(head, FCNHead),
}


def check_adaptive_avg_pool(recording):
    for case in sorted({name.split("/")[0] for name in recording.arrays}):
        x = np.moveaxis(recording[f"{case}/inputs/x"], 1, -1)
        output = first(convolution.adaptive_avg_pool(x, int(recording[f"{case}/pool"])))
        assert relative_error(output, recording[f"{case}/outputs/out"]) < VALUES, case


def check_bilinear_resize(recording):
    for case in sorted({name.split("/")[0] for name in recording.arrays}):
        hw = recording[f"{case}/outputs/out"].shape[2:]
        output, transpose = jax.vjp(
            lambda x, hw=hw: first(resize.resize_bilinear(last(x), hw)),
            recording[f"{case}/inputs/x"],
        )
        assert relative_error(output, recording[f"{case}/outputs/out"]) < VALUES, case
        (gradient,) = transpose(jnp.asarray(recording[f"{case}/cotangents/out"]))
        assert relative_error(gradient, recording[f"{case}/grads/inputs/x"]) < GRADIENTS, case


def check_pos_embed_bicubic(recording):
    for case in sorted({name.split("/")[0] for name in recording.arrays}):
        _, *hw = recording[f"{case}/size"].tolist()

        def positions(table, hw=hw):
            return tokens(vit.absolute_positions(jnp.pad(table, ((0, 0), (1, 0), (0, 0))), hw))

        output, transpose = jax.vjp(positions, recording[f"{case}/inputs/pos_embed"])
        assert relative_error(output, recording[f"{case}/outputs/out"]) < VALUES, case
        (gradient,) = transpose(jnp.asarray(recording[f"{case}/cotangents/out"]))
        assert relative_error(gradient, recording[f"{case}/grads/inputs/pos_embed"]) < GRADIENTS


def check_slide_inference(training, recording):
    """The segmentor of a recorded training, with its first weights, in windows."""
    training = Recording(REFERENCE / "vit_adapter" / "trajectory" / f"{training}.npz")
    config = config_of(training, "float32")
    model = build_model(config.model)
    variables = rules.to_variables(verify.filled_state_dict(config))
    meta = recording.json("meta")
    slide = SlidingWindow(tuple(meta["crop"]), tuple(meta["stride"]))
    network, hw = windowed.model_batcher(model, variables), tuple(meta["ori_shape"])
    image = np.asarray(last(recording["inputs/img"])[0])
    view = windowed.view_of(network, image, hw, slide)
    mirrored = windowed.view_of(network, image[:, ::-1], hw, slide, mirrored=True)
    logits = windowed.logits(view, network, hw)[None]
    outputs = {
        "slide_logits_rescaled": logits,
        "probs": windowed.probabilities([view], network, hw)[None],
        "flip_averaged_probs": windowed.probabilities([view, mirrored], network, hw)[None],
    }
    for name, value in outputs.items():
        if f"outputs/{name}" in recording:
            assert relative_error(first(value), recording[f"outputs/{name}"]) < VALUES, name
    margins = np.diff(np.sort(logits, axis=-1)[..., -2:], axis=-1)[..., 0]
    same = np.asarray(jnp.argmax(logits, axis=-1)) == recording["outputs/argmax"]
    assert np.all(same | (margins < VALUES * np.max(np.abs(logits))))


FUNCTIONS = {
    "adaptive_avg_pool": check_adaptive_avg_pool,
    "bilinear_resize": check_bilinear_resize,
    "pos_embed_bicubic": check_pos_embed_bicubic,
    # Named after mask2former_tiny, but it is the other model that was recorded.
    "slide_inference_mask2former": functools.partial(check_slide_inference, "mask2former_tiny_b"),
    "slide_inference_upernet": functools.partial(check_slide_inference, "upernet_tiny"),
    **{
        name: lambda recording, compute=compute: check_module(recording, compute)
        for name, compute in CHECKS.items()
    },
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_module_equals_the_reference(path):
    leading = max((n for n in FUNCTIONS if path.stem.startswith(n)), key=len, default=None)
    assert leading, f"{path.name}: nothing here knows how to check it"
    FUNCTIONS[leading](Recording(path))


BLOCKS = {"ViTBlock": vit_block, "BEiTBlock": beit_block}
SLOW = ("BEiTBlock_relpos_nols", "BEiTBlock_relpos_ls")  # with tables of positions, interpreted


@pytest.mark.tpu
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.full] * (path.stem in SLOW))
        for path in FILES
        if path.stem.startswith(tuple(BLOCKS))
    ],
)
def test_block_with_the_kernels_for_tpus_equals_the_reference(path):
    recording = Recording(path)
    x = recording["inputs/x"]
    channels = x.shape[2] // recording.json("meta")["heads"]
    assert attention.fits(x.shape[1], channels, x.dtype, None)
    (compute,) = (function for name, function in BLOCKS.items() if path.stem.startswith(name))
    check_module(recording, functools.partial(compute, kernels=KernelChoice("tpu")))
