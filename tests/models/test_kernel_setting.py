"""config.model.kernels, JAXSEG_KERNELS and config.deterministic: what becomes of them."""

import functools
import json
import os
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.distributed.sharding import compiler_options
from jaxseg.errors import ConfigError
from jaxseg.models import kernels
from jaxseg.models.segmentation_model import ANY_HW, build_model, init_variables
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state
from jaxseg.training.step import make_train_step
from pallas_kernels import dispatch
from support.runs import CUDA, NEEDS_CUDA, ROOT, failure, run
from support.small_mask2former import mask2former_config
from support.tiny_vits import VIT, config_of

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]
ONE_BLOCK = {"depth": 1, "interaction_indexes": ((0, 0),), "add_vit_feature": False}
MODELS = {
    "ViT-Adapter": functools.partial(config_of, VIT, **ONE_BLOCK),
    "InternImage with Mask2Former": mask2former_config,
}
# Tracing the other one takes half a minute.
ONE_EVERY_TIME = [
    pytest.param(name, marks=[pytest.mark.full] * (name != "ViT-Adapter")) for name in MODELS
]


@pytest.fixture(params=["gpu", "tpu"])
def platform(request, monkeypatch):
    """As if a mesh of such devices, which are absent here, were set."""
    monkeypatch.setattr(dispatch, "platform", lambda: request.param)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


def traced(config):
    """A train step of the config, traced from shapes alone."""
    model = build_model(config.model, config.deterministic)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    state = jax.eval_shape(lambda: init_state(config, model, optimizer))
    hw = config.data.crop_hw
    batch = {
        "image": jax.ShapeDtypeStruct((2, *hw, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((2, *hw), jnp.int32),
    }
    step = make_train_step(config, model, optimizer)
    return jax.jit(step).trace(state, batch)


@pytest.mark.parametrize("model", ONE_EVERY_TIME)
def test_xla_leaves_no_kernel_in_a_train_step(platform, model, monkeypatch):
    config = MODELS[model]().copy_and_resolve_references()
    assert "pallas_call" in str(traced(config).jaxpr)
    monkeypatch.setenv(kernels.VARIABLE, "xla")
    assert "pallas_call" not in str(traced(config).jaxpr)


@pytest.mark.parametrize("model", MODELS)
def test_initialization_has_no_kernel(platform, model):
    built = build_model(MODELS[model]().model)
    key = jax.random.key(0)
    traced = jax.make_jaxpr(lambda: init_variables(built, key, ANY_HW))()
    assert "pallas_call" not in str(traced)


@pytest.mark.parametrize("model", ONE_EVERY_TIME)
def test_deterministic_kernels_for_cuda_have_no_atomics(model, monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
    config = MODELS[model]().copy_and_resolve_references()

    def lowered():
        return traced(config).lower(lowering_platforms=("cuda",)).as_text()

    assert "atomic_rmw" in lowered()
    config.deterministic = True
    text = lowered()
    assert "value_gradient_in_order" in text
    assert "atomic" not in text


@pytest.mark.full
@NEEDS_CUDA
@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_programs_for_gpus_have_neither_atomics_nor_coinciding_scatters(
    deterministic,
):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{CUDA}", "XLA_FLAGS": ""}
    environment |= {"JAX_OPTIMIZATION_LEVEL": "O1"}
    program = ROOT / "tests/support/deterministic_for_gpu.py"
    arguments = [sys.executable, program, str(deterministic).lower()]
    printed = run({"args": arguments, "env": environment, "cwd": ROOT, "text": True}, 1200)
    report = json.loads(printed.splitlines()[-1])
    assert report["kernels"] > 0
    assert report["atomics"] == (not deterministic)
    assert (report["scatters"] == 0) == deterministic
    # The loops of the model: no scatter became one, whose updates are hundreds here.
    assert report["longest_loop"] < 20


@pytest.mark.parametrize(
    ("platform", "deterministic", "options"),
    [
        ("gpu", True, {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}),
        ("gpu", False, {}),
        ("cpu", True, {}),
        ("tpu", True, {}),
    ],
)
def test_deterministic_asks_xla_for_its_deterministic_operations(platform, deterministic, options):
    # Of scatters too, which Mask2Former's loss and cross-entropy have.
    devices = np.array([[types.SimpleNamespace(platform=platform)]])
    mesh = mock.Mock(spec=jax.sharding.Mesh, devices=devices)
    assert compiler_options(mesh, deterministic) == options


def test_the_variable_wins_and_is_named(monkeypatch):
    config = {"kernels": "tpu"}
    assert kernels.kernel_choice({}).implementation is None
    assert kernels.kernel_setting({}) == ("auto", "config.model.kernels")
    assert kernels.kernel_choice(config).implementation == "tpu"
    monkeypatch.setenv(kernels.VARIABLE, "xla")
    assert kernels.kernel_choice(config).implementation == "xla"
    assert kernels.describe_kernels(config) == "xla: XLA on cpu (from JAXSEG_KERNELS)"
    monkeypatch.setenv(kernels.VARIABLE, "cuda")
    with pytest.raises(
        ConfigError, match="JAXSEG_KERNELS=cuda: must be one of auto, xla, gpu, tpu"
    ):
        kernels.kernel_choice(config)


def test_kernels_of_another_platform_are_refused_in_a_line(command, tmp_path):
    message = failure(command(tmp_path, **{"model.kernels": "gpu"}))
    lines = [line for line in message.splitlines() if line.startswith("jaxseg:")]
    assert lines == [
        "jaxseg: config.model.kernels=gpu: these kernels need a GPU, but the devices are of"
        " platform cpu; set it to auto or xla"
    ]
