"""Whole models have the same gradients through the kernels as through the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from converters import rules, verify
from jaxseg import parameter_paths
from jaxseg.models.segmentation_model import apply_model, build_model
from pallas_kernels import GroupOrder, reference
from pallas_kernels.gpu import operators as gpu
from pallas_kernels.tpu import attention
from pallas_kernels.tpu import operators as tpu
from pallas_kernels.tpu.planes import padded_groups
from support.operators import GRADIENTS, INTERPRET
from support.reference_files import relative_error
from support.tiny import tiny_config
from support.tiny_vits import VIT, config_of

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def called(operator, **options):
    """As models call it: with a choice of the implementation, which is made here instead."""

    def call(*arrays, implementation=None, deterministic=False, **settings):
        return operator(*arrays, **settings, **options)

    return call


# By implementation: what models call. Kernels are interpreted.
REFERENCE = {
    name: called(getattr(reference, name)) for name in ("dcnv3", "ms_deform_attn", "self_attention")
}
# The order in memory that models give their arrays on TPU.
TPU_ORDER = {
    "dcnv3_group_order": lambda groups, width, _: GroupOrder(padded_groups(groups, width), True),
    "ms_deform_attn_takes_tokens_last": lambda _: True,
}
OPERATORS = {
    "reference": REFERENCE,
    "reference in the order of a TPU": REFERENCE | TPU_ORDER,
    "gpu": {
        "dcnv3": called(gpu.dcnv3, interpret=INTERPRET),
        "ms_deform_attn": called(gpu.ms_deform_attn, interpret=INTERPRET),
    },
    "tpu": {
        "dcnv3": called(tpu.dcnv3),
        "ms_deform_attn": called(tpu.ms_deform_attn),
        "self_attention": called(attention.self_attention),
        **TPU_ORDER,
    },
}


def internimage():
    """Of two stages."""
    config = tiny_config()
    config.model.backbone.update(depths=(1, 1), groups=(1, 2))
    return config


def vit_adapter():
    """Of one block, with an injector before it and two extractors after it."""
    return config_of(
        VIT, depth=1, interaction_indexes=((0, 0),), extra_extractors=1, add_vit_feature=False
    )


MODELS = {"InternImage": internimage, "ViT-Adapter": vit_adapter}


@functools.cache
def filled(name):
    """A model with a UPerHead, and variables of which none is zero."""
    config = MODELS[name]()
    config.model.auxiliary_head = None
    return build_model(config.model), rules.to_variables(verify.filled_state_dict(config))


@functools.cache
def gradients(name, implementation):
    """Of all parameters, by path."""
    model, variables = filled(name)
    images = np.random.default_rng(0).standard_normal((1, 32, 64, 3), np.float32)

    def loss(params):
        output, _ = apply_model(model, variables | {"params": params}, images)
        return jnp.sum(jnp.sin(output.logits))

    with pytest.MonkeyPatch.context() as patch:
        for operator, run in OPERATORS[implementation].items():
            patch.setattr(pallas_kernels, operator, run)
        of_params = jax.jit(jax.grad(loss))(variables["params"])
    return parameter_paths.by_path({"params": of_params})


# The compilation of interpreted kernels for TPU takes longest.
CASES = [(name, i) for name in MODELS for i in ("reference in the order of a TPU", "gpu")]
CASES += [pytest.param(name, "tpu", marks=pytest.mark.full) for name in MODELS]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_parameter_gradients_are_those_of_the_definition(name, implementation):
    expected = gradients(name, "reference")
    for path, gradient in gradients(name, implementation).items():
        assert np.any(gradient), path
        assert relative_error(gradient, expected[path]) < GRADIENTS, path
