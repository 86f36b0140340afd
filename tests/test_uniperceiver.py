"""Uni-Perceiver's embedding and blocks, beside the same of PyTorch's own modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_files import relative_error

from converters import rules
from converters.fill import fill
from jaxseg import paths
from jaxseg.models import uniperceiver

RANDOM = np.random.default_rng(0)


def filled(module, *inputs):
    """Variables made from their names, and the same as PyTorch tensors would be named."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    tensors = {}
    for path, shape in paths.shapes(shapes).items():
        name = rules.to_name(path)
        tensors[name] = fill(name, rules.channels_first_shape(shape, path))
    return rules.to_variables(tensors), tensors


def test_block_is_pytorch_attention_and_linear_layers_after_norms():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = RANDOM.standard_normal((2, 12, 16)).astype(np.float32)
    block = uniperceiver.Block(num_heads=4)
    variables, tensors = filled(block, x, (3, 4), False)
    weights = {name: torch.tensor(value) for name, value in tensors.items()}

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (16,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    projections = {
        "in_proj_weight": weights["self_attn.in_proj.weight"],
        "in_proj_bias": weights["self_attn.in_proj.bias"],
        "out_proj.weight": weights["self_attn.out_proj.weight"],
        "out_proj.bias": weights["self_attn.out_proj.bias"],
    }
    attention.load_state_dict(projections)
    expected = torch.tensor(x)
    normed = norm(expected, "norm1")
    expected = expected + weights["gamma_1"] * attention(normed, normed, normed)[0]
    hidden = functional.gelu(linear(norm(expected, "norm2"), "linear1"))
    expected = expected + weights["gamma_2"] * linear(hidden, "linear2")

    output = block.apply(variables, x, (3, 4), False)
    assert relative_error(output, expected.detach().numpy()) < 1e-5


def test_embedding_adds_resized_positions_and_the_first_frame_before_its_norm():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    images = RANDOM.standard_normal((2, 32, 96, 3)).astype(np.float32)
    embed = uniperceiver.VisualEmbed(embed_dim=8, grid=4)
    variables, tensors = filled(embed, images)
    weights = {name: torch.tensor(value) for name, value in tensors.items()}

    patches = functional.conv2d(
        torch.tensor(np.moveaxis(images, -1, 1).copy()),
        weights["patch_embed.proj.weight"],
        weights["patch_embed.proj.bias"],
        stride=16,
    )
    table = weights["patch_embed.spatial_pos_embed.weight"].T.reshape(1, 8, 4, 4)
    spatial = functional.interpolate(table, (2, 6), mode="bicubic", align_corners=False)
    frame = weights["patch_embed.temporal_pos_embed.weight"][0]
    tokens = (patches + spatial).permute(0, 2, 3, 1) + frame
    expected = functional.layer_norm(
        tokens, (8,), weights["embeddings_norm.weight"], weights["embeddings_norm.bias"]
    )
    assert relative_error(embed.apply(variables, images), expected.numpy()) < 1e-5


def test_fresh_blocks_pass_their_input_on():
    x = RANDOM.standard_normal((1, 6, 8)).astype(np.float32)
    block = uniperceiver.Block(num_heads=2)
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
