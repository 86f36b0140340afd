"""Training as it was recorded: the weights, batches and settings of the original, step by step."""

import dataclasses
import os
import sys

import jax
import numpy as np

from converters import rules, verify
from jaxseg import parameter_paths
from jaxseg.models.segmentation_model import build_model
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import TrainState
from jaxseg.training.step import make_train_step
from support.reference_files import Recording
from support.runs import ROOT, run


@dataclasses.dataclass
class Trajectory:
    """What came out: numbers per step; by PyTorch name, the norms of the first gradients, and the
    final parameters and batch statistics."""

    losses: np.ndarray
    gradient_norms: np.ndarray
    first_norms: dict[str, float]
    final: dict[str, np.ndarray]


def train(config, names, batches):
    """One step for every batch (images [b,3,h,w], labels [b,h,w]), from the weights of `fill`.

    `names` are those of the original's tensors.
    """
    dtype = config.model.dtype
    model = build_model(config.model)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    weights = {name: v.astype(dtype) for name, v in verify.filled_state_dict(config).items()}
    assert set(weights) == {name for name in names if not name.endswith(rules.COUNTER)}
    variables = rules.to_variables(weights)
    state = TrainState(step=np.int32(0), **variables, opt_state=optimizer.init(variables["params"]))
    step = jax.jit(make_train_step(config, model, optimizer))

    steps = []
    for images, labels in batches:
        images = np.moveaxis(images, 1, -1).astype(dtype)
        state, logs = step(state, {"image": images, "label": labels.astype(np.int32)})
        steps.append(jax.device_get(logs))

    first = dict(
        zip(parameter_paths.by_path(state.params), np.sqrt(steps[0]["norms"]), strict=True)
    )
    final = parameter_paths.by_path({"params": state.params, "batch_stats": state.batch_stats})
    return Trajectory(
        losses=np.array([logs["loss"] for logs in steps]),
        gradient_norms=np.array([logs["gradient_norm"] for logs in steps]),
        first_norms={rules.to_name(f"params/{path}"): norm for path, norm in first.items()},
        final={
            rules.to_name(path): rules.to_channels_first(np.asarray(value), path)
            for path, value in final.items()
        },
    )


def in_float64(path, folder):
    """What `train_in_float64.py` makes of a recording, in a process of its own."""
    output = folder / "trajectory.npz"
    program = ROOT / "tests/support/train_in_float64.py"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, program, path, output]
    run({"args": arguments, "env": environment, "text": True}, timeout_seconds=1200)
    return Recording(output)


def assert_final(final, names, means, stds, values, tolerance):
    """Compares the final tensors: mean and standard deviation of all, all `values` of some."""
    for name, mean, std in zip(names, means, stds, strict=True):
        if not name.endswith(rules.COUNTER):
            value = final[name].astype(np.float64)
            assert abs(value.mean() - mean) < tolerance, name
            assert abs(value.std() - std) < tolerance, name
    for name, expected in values.items():
        np.testing.assert_allclose(final[name], expected, rtol=0, atol=tolerance, err_msg=name)
