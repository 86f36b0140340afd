"""Recomputed blocks keep what kernels computed, and have the same gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from jaxseg.models.backbones.internimage import InternImageLayer
from jaxseg.models.heads.mask2former_head import DecoderLayer
from jaxseg.models.heads.pixel_decoder import EncoderLayer
from jaxseg.models.remat import KEPT, remat_block
from pallas_kernels import KernelChoice

PYRAMID = ((4, 4), (2, 2))


def gradient_of(kind, tokens):
    layer = kind(2, 4, 8, KernelChoice("tpu"))
    positions = jnp.zeros((1, *tokens.shape[1:]))
    variables = layer.init(jax.random.key(0), tokens, positions, PYRAMID)
    return jax.grad(lambda x: jnp.sum(layer.apply(variables, x, positions, PYRAMID) ** 2))


@pytest.mark.parametrize(("keeps", "calls"), [("kernels", 1), ("nothing", 2)])
def test_a_kernel_that_is_kept_runs_once(keeps, calls):
    tokens = np.random.default_rng(0).standard_normal((1, 20, 64)).astype(np.float32)
    recomputing = remat_block(EncoderLayer, keeps, [3])
    jaxpr = jax.make_jaxpr(gradient_of(recomputing, tokens))(tokens)
    found = re.findall(r"name=(\w*forward)", str(jaxpr))
    # Each call is there twice: for TPUs, and interpreted.
    assert len(found) == 2 * calls, found


@pytest.mark.parametrize(("keeps", "times"), [("kernels", 1), ("nothing", 2)])
def test_the_deviations_of_norms_that_are_kept_are_computed_once(keeps, times):
    layer = remat_block(InternImageLayer, keeps, [2])(1, post_norm=True)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 8)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x, False)
    gradient = jax.grad(lambda x: jnp.sum(layer.apply(variables, x, False) ** 2))
    norms = 3  # after the depthwise convolution, DCNv3 and the MLP
    assert jax.jit(gradient).lower(x).as_text().count("stablehlo.rsqrt") == norms * times


def test_the_second_product_of_an_mlp_is_not_computed_again():
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 8)).astype(np.float32)

    def products(keeps):
        layer = remat_block(InternImageLayer, keeps, [2])(1, post_norm=True)
        variables = layer.init(jax.random.key(0), x, False)
        gradient = jax.grad(lambda x: jnp.sum(layer.apply(variables, x, False) ** 2))
        return jax.jit(gradient).lower(x).as_text().count("stablehlo.dot_general")

    assert products("nothing") == products("kernels") + 1


def test_only_two_products_of_a_layer_of_the_pixel_decoder_are_computed_again(monkeypatch):
    monkeypatch.setattr("pallas_kernels.ms_deform_attn_takes_tokens_last", lambda _: True)
    tokens = np.random.default_rng(0).standard_normal((1, 20, 64)).astype(np.float32)

    def products(keeps):
        gradient = gradient_of(remat_block(EncoderLayer, keeps, [3]), tokens)
        return str(jax.make_jaxpr(gradient)(tokens)).count("dot_general[")

    # Value, offsets along x and y, weights, and the second product of the FFN are kept. The output
    # projection and the first product of the FFN are not.
    assert products("nothing") == products("kernels") + 5


def test_a_layer_of_the_decoder_keeps_its_projections():
    random = np.random.default_rng(0)
    query, memory = (jnp.asarray(random.standard_normal((1, n, 8)), jnp.float32) for n in (3, 6))
    places, blocked = (jnp.zeros((3, 8)), jnp.zeros((6, 8))), jnp.zeros((1, 3, 6), bool)

    def products(keeps):
        layer = remat_block(DecoderLayer, keeps)(2, 16)
        arguments = query, places[0], memory, places[1], blocked
        variables = layer.init(jax.random.key(0), *arguments)
        gradient = jax.grad(lambda x: jnp.sum(layer.apply(variables, x, *arguments[1:]) ** 2))
        return str(jax.make_jaxpr(gradient)(query)).count("dot_general[")

    # Queries, keys and values of both attentions, and the second product of the FFN.
    assert products("nothing") == products("kernels") + 7


def test_a_block_keeps_what_its_attention_reads():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16, 128)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((128, 384)), jnp.float32)

    def products(keeps):
        def block(x):
            return pallas_kernels.self_attention(x @ weights, num_heads=2, implementation="tpu")

        gradient = jax.grad(lambda x: jax.checkpoint(block, policy=KEPT[keeps])(x).sum())
        return str(jax.make_jaxpr(gradient)(x)).count(":f32[1,16,384] = dot_general[")

    assert products("kernels") == 1
    assert products("nothing") == 2
