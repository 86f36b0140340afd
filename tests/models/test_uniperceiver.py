"""Uni-Perceiver's embedding and blocks, beside the same in plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from converters import rules
from converters.fill import fill
from jaxseg import parameter_paths
from jaxseg.models.backbones import uniperceiver
from jaxseg.ops.resize import resize_bicubic
from support.reference_files import relative_error

RANDOM = np.random.default_rng(0)


def filled(module, *inputs):
    """Variables made from their PyTorch names, and the parameters by these names, float64."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    tensors = {}
    for path, shape in parameter_paths.shapes(shapes).items():
        name = rules.to_name(path)
        tensors[name] = fill(name, rules.channels_first_shape(shape, path))
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    return rules.to_variables(tensors), weights


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x, weights, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def test_block_is_attention_and_linear_layers_after_norms_each_scaled():
    x = RANDOM.standard_normal((2, 12, 16)).astype(np.float32)
    block = uniperceiver.UniPerceiverBlock(num_heads=4)
    variables, weights = filled(block, x, (3, 4), False)

    expected = x.astype(np.float64)
    qkv = linear(norm(expected, weights, "norm1"), weights, "self_attn.in_proj")
    query, key, value = np.moveaxis(qkv.reshape(2, 12, 3, 4, 4), 2, 0)
    exponentials = np.exp(np.einsum("bngd,bmgd->bgnm", query, key) / 2)
    shares = exponentials / exponentials.sum(-1, keepdims=True)
    mixed = np.einsum("bgnm,bmgd->bngd", shares, value).reshape(2, 12, 16)
    expected = expected + weights["gamma_1"] * linear(mixed, weights, "self_attn.out_proj")
    hidden = linear(norm(expected, weights, "norm2"), weights, "linear1")
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
    expected = expected + weights["gamma_2"] * linear(hidden, weights, "linear2")

    output = block.apply(variables, x, (3, 4), False)
    assert relative_error(output, expected) < 1e-5


def test_embedding_adds_resized_positions_and_the_first_frame_before_its_norm():
    images = RANDOM.standard_normal((2, 32, 96, 3)).astype(np.float32)
    embed = uniperceiver.VisualEmbed(embed_dim=8, grid=4)
    variables, weights = filled(embed, images)

    patches = images.reshape(2, 2, 16, 6, 16, 3)
    tokens = np.einsum("bhywxi,oiyx->bhwo", patches, weights["patch_embed.proj.weight"])
    tokens += weights["patch_embed.proj.bias"]
    table = weights["patch_embed.spatial_pos_embed.weight"].reshape(1, 4, 4, 8)
    tokens += resize_bicubic(table.astype(np.float32), (2, 6))  # against recordings elsewhere
    tokens += weights["patch_embed.temporal_pos_embed.weight"][0]
    expected = norm(tokens, weights, "embeddings_norm")
    assert relative_error(embed.apply(variables, images), expected) < 1e-5


def test_fresh_blocks_pass_their_input_on():
    x = RANDOM.standard_normal((1, 6, 8)).astype(np.float32)
    block = uniperceiver.UniPerceiverBlock(num_heads=2)
    output, _ = block.init_with_output(jax.random.key(0), x, (2, 3), False)
    np.testing.assert_array_equal(output, x)


def test_features_have_the_strides_of_a_pyramid():
    model = uniperceiver.UniPerceiverAdapter(
        embed_dim=8,
        depth=2,
        num_heads=2,
        interaction_indexes=((0, 0), (1, 1)),
        deform_num_heads=2,
        conv_inplane=4,
        add_vit_feature=False,
    )
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    features, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert [x.shape for x in features] == [(1, 64 // s, 96 // s, 8) for s in (4, 8, 16, 32)]
    assert {"layers_0", "layers_1", "visual_embed"} <= set(variables["params"])
