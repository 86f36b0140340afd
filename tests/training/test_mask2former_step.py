"""One step of Mask2Former: finite, the same on any mesh, and whole on the device."""

import functools
import json
import os
import sys

import jax
import numpy as np
import pytest

from jaxseg.distributed.sharding import infer_shardings, make_mesh, put_batch
from jaxseg.models.segmentation_model import build_model
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state
from jaxseg.training.step import make_train_step
from support.runs import ROOT
from support.runs import run as run_process
from support.small_mask2former import mask2former_config

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.long]


@functools.cache
def model_and_optimizer():
    model = build_model(mask2former_config().model)
    return model, make_optimizer(
        mask2former_config().optim, mask2former_config().model.backbone, mask2former_config().steps
    )


@functools.cache
def initial_state():
    return jax.jit(lambda: init_state(mask2former_config(), *model_and_optimizer()))()


def batch():
    """Eight images with up to four classes each; nothing is labeled in the last one."""
    random = np.random.default_rng(0)
    label = random.integers(0, 19, (8, 2, 2)).repeat(32, axis=1).repeat(32, axis=2)
    label[7] = 255
    image = random.standard_normal((8, 64, 64, 3)) + label[..., None] / 10
    return {"image": image.astype(np.float32), "label": label.astype(np.int32)}


def run(mesh_config, devices):
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    shardings = infer_shardings(initial_state(), mask2former_config().sharding, mesh)
    state = jax.device_put(jax.tree.map(np.asarray, initial_state()), shardings)
    step = jax.jit(
        make_train_step(mask2former_config(), *model_and_optimizer()),
        out_shardings=(shardings, None),
    )
    with jax.set_mesh(mesh):
        return step(state, put_batch(batch(), mesh))


@pytest.mark.full
def test_loss_is_the_same_on_one_device_and_on_eight():
    _, alone = run({"data": 1, "fsdp": 1}, 1)
    state, shared = run({"data": 4, "fsdp": 2}, 8)
    assert int(state.step) == 1  # which a step that is not finite does not count
    for name in ("loss", "loss_cls", "loss_mask", "loss_dice", "gradient_norm"):
        np.testing.assert_allclose(shared[name], alone[name], rtol=1e-5, err_msg=name)
    assert alone["targets_dropped"] == 0


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_step_lowers_for_accelerators_without_a_callback_to_the_host(platform):
    step = jax.jit(make_train_step(mask2former_config(), *model_and_optimizer()))
    lowered = step.trace(initial_state(), batch()).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.dot_general" in lowered
    assert "callback" not in lowered


@pytest.mark.full
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_step_of_the_published_size_lowers_for_sixteen_devices(platform):
    """Every device has an image, and a share of weights and moments; nothing asks the host."""
    program = ROOT / "tests/support/lower_full_size.py"
    recipe = "configs/coco_stuff164k.py:mask2former_beit_adapter_l"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, program, recipe, platform]
    printed = run_process({"args": arguments, "env": environment, "cwd": ROOT, "text": True})
    report = json.loads(printed.splitlines()[-1])
    assert report["batch"] == [16, 896, 896]
    assert report["parameters"] > 570e6
    assert report["parameters_per_device"] < report["parameters"] / 13  # tables are repeated
    assert report["partitions"]
    assert not report["callback"]
    # No tables of all pairs of tokens or points are written into the program.
    assert report["characters"] < 50e6
