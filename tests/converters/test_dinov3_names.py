"""DINOv3's weights in three namings give the same variables, bit for bit."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from converters import dinov3, torch_weights
from converters.fill import fill
from converters.torch_files import torch_writer
from jaxseg import parameter_paths
from jaxseg.errors import CheckpointError
from jaxseg.models.segmentation_model import build_model, variable_shapes
from support.tiny import tiny_config

WIDTH, DEPTH = 64, 2


def config_of(ffn="mlp", use_bias=True):
    backbone = {"kind": "dinov3", "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}
    backbone |= {"out_indices": (1,), "ffn": ffn, "ffn_ratio": 2.0, "use_bias": use_bias}
    config = tiny_config()
    with config.unlocked():
        head = {"kind": "linear", "num_classes": 19, "in_index": (0,)}
        config.model = ConfigDict(
            {"dtype": "float32", "kernels": "auto", "backbone": backbone, "decode_head": head}
        )
        config.model.auxiliary_head = None
    return config


def original(ffn="mlp", use_bias=True):
    """A file of the original, whose key biases do not count."""
    shapes = {"cls_token": (1, 1, WIDTH), "storage_tokens": (1, 4, WIDTH), "mask_token": (1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 16, 16), "patch_embed.proj.bias": (WIDTH,)}
    hidden = 2 * WIDTH if ffn == "mlp" else 88
    layers = {"fc1": (hidden, WIDTH), "fc2": (WIDTH, hidden)}
    if ffn != "mlp":
        layers = {"w1": (hidden, WIDTH), "w2": (hidden, WIDTH), "w3": (WIDTH, hidden)}
    for block in (f"blocks.{i}" for i in range(DEPTH)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.{leaf}": (WIDTH,) for leaf in ("weight", "bias")}
        shapes[f"{block}.attn.qkv.weight"] = (3 * WIDTH, WIDTH)
        if use_bias:
            shapes[f"{block}.attn.qkv.bias"] = (3 * WIDTH,)
        shapes |= {f"{block}.attn.proj.weight": (WIDTH, WIDTH), f"{block}.attn.proj.bias": (WIDTH,)}
        shapes |= {f"{block}.ls1.gamma": (WIDTH,), f"{block}.ls2.gamma": (WIDTH,)}
        for name, shape in layers.items():
            shapes |= {f"{block}.mlp.{name}.weight": shape, f"{block}.mlp.{name}.bias": shape[:1]}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    tensors = {name: fill(name, shape) for name, shape in shapes.items()}
    for name in [name for name in tensors if name.endswith("qkv.bias")]:
        tensors[name][WIDTH : 2 * WIDTH] = 0
        tensors[f"{name}_mask"] = np.repeat(np.float32([1, 0, 1]), WIDTH)
    tensors["rope_embed.periods"] = np.float32(100) ** (np.arange(8, dtype=np.float32) / 8)
    return tensors


def of_transformers(tensors):
    """As huggingface.co's files have them."""
    top = {"cls_token": "embeddings.cls_token", "storage_tokens": "embeddings.register_tokens"}
    top |= {"patch_embed.proj.weight": "embeddings.patch_embeddings.weight"}
    top |= {"patch_embed.proj.bias": "embeddings.patch_embeddings.bias"}
    gated = any(".mlp.w1." in name for name in tensors)
    parts = {"attn.proj": "attention.o_proj", "ls1.gamma": "layer_scale1.lambda1"}
    parts |= {"ls2.gamma": "layer_scale2.lambda1"}
    parts |= (
        {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj", "mlp.w3": "mlp.down_proj"}
        if gated
        else {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    )
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(("periods", "bias_mask")):
            continue
        if name == "mask_token":
            found["embeddings.mask_token"] = tensor[None]
        elif ".attn.qkv." in name:
            layer, leaf = name.split(".")[1], name.split(".")[-1]
            for part, values in zip("qkv", np.split(tensor, 3), strict=True):
                if (part, leaf) != ("k", "bias"):
                    found[f"layer.{layer}.attention.{part}_proj.{leaf}"] = values
        elif name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            for old, new in parts.items():
                rest = new + rest.removeprefix(old) if rest.startswith(old) else rest
            found[f"layer.{layer}.{rest}"] = tensor
        else:
            found[top.get(name, name)] = tensor
    return found


def of_timm(tensors, with_bias=True):
    """As timm has them; models whose biases are zero are without."""
    parts = {"mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2"}
    parts |= {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(("periods", "bias_mask", "mask_token")):
            continue
        if name.endswith("qkv.bias"):
            query, _, value = np.split(tensor, 3)
            stem = name.removesuffix("qkv.bias")
            found |= {f"{stem}q_bias": query, f"{stem}v_bias": value} if with_bias else {}
            continue
        for old, new in parts.items():
            name = name.replace(old, new)
        found["reg_token" if name == "storage_tokens" else name] = tensor
    return found


def backbone_of(tensors, config, path):
    """The variables of the backbone that a file gives, and what stays as it was initialized."""
    torch_writer.write_torch_file(path, tensors, {})
    wanted = parameter_paths.shapes(variable_shapes(build_model(config.model)))
    read = torch_weights.read_weights(path, wanted, model="model")
    return {p: np.asarray(a) for p, a in read.arrays.items()}, read.plan.derived


CASES = [("mlp", True), ("swiglu", True), ("swiglu64", False)]


@pytest.mark.parametrize(("ffn", "use_bias"), CASES)
def test_three_namings_give_the_same_variables(ffn, use_bias, tmp_path):
    config, tensors = config_of(ffn, use_bias), original(ffn, use_bias)
    if ffn == "swiglu64":
        config.model.backbone.ffn_ratio = 88 * 3 / 2 / WIDTH
        config.model.backbone.ffn = "swiglu"
    expected, derived = backbone_of(tensors, config, tmp_path / "original.pth")
    assert not derived
    periods = {"batch_stats/backbone/rope_embed/periods"}
    for naming in (of_transformers, of_timm):
        found, derived = backbone_of(naming(tensors), config, tmp_path / f"{naming.__name__}.pth")
        assert set(derived) == periods
        assert found.keys() == expected.keys() - periods
        for path, array in found.items():
            np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_biases_that_timm_leaves_out_are_zero(tmp_path):
    found, derived = backbone_of(
        of_timm(original(), with_bias=False), config_of(), tmp_path / "timm.pth"
    )
    assert {path.rpartition("attn/")[2] for path in derived if "attn" in path} == {"qkv/bias"}
    assert not any(path.endswith("qkv/bias") for path in found)


def test_a_mask_that_is_not_set_counts_as_the_models():
    tensors = original()
    name = "blocks.0.attn.qkv.bias_mask"
    dinov3.common_names(tensors | {name: np.full(3 * WIDTH, np.nan, np.float32)})
    with pytest.raises(
        CheckpointError, match=r"blocks\.0.*1 for queries and values and 0 for keys"
    ):
        dinov3.common_names(tensors | {name: np.ones(3 * WIDTH, np.float32)})


def test_a_segmentor_comes_in_two_files(tmp_path):
    """As the published one: the backbone, and all the rest."""
    config, tensors = config_of(), original()
    head = {"batchnorm_layer.weight": (WIDTH,), "batchnorm_layer.bias": (WIDTH,)}
    head |= {"batchnorm_layer.running_mean": (WIDTH,), "batchnorm_layer.running_var": (WIDTH,)}
    head |= {"conv.weight": (19, WIDTH, 1, 1), "conv.bias": (19,)}
    head = {f"segmentation_model.1.{name}": fill(name, shape) for name, shape in head.items()}
    for name, content in {"backbone.pth": tensors, "head.pth": head}.items():
        torch_writer.write_torch_file(tmp_path / name, content, {})
    wanted = parameter_paths.shapes(variable_shapes(build_model(config.model)))
    with pytest.raises(CheckpointError, match="--backbone FILE"):
        torch_weights.read_weights(tmp_path / "head.pth", wanted, model="model")
    read = torch_weights.read_weights(
        tmp_path / "head.pth", wanted, model="model", backbone=tmp_path / "backbone.pth"
    )
    assert read.arrays.keys() == wanted.keys()
    weight = read.arrays["params/decode_head/conv_seg/kernel"]
    np.testing.assert_array_equal(
        weight[0, 0].T, head["segmentation_model.1.conv.weight"][..., 0, 0]
    )
