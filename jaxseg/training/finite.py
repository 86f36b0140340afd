"""Checks that the loss and the gradients of an update are finite."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxseg.errors import JaxsegError
from jaxseg.parameter_paths import by_path
from jaxseg.training.freezing import split_frozen
from jaxseg.training.state import TrainState


class NonFiniteError(JaxsegError):
    """Signals that the loss or a gradient is not finite."""


def check_finite(
    step: int, logs: dict[str, jax.Array] | None, state: TrainState, frozen: Sequence[str] = ()
):
    """Checks that the loss and the gradients of an update are finite.

    Args:
      step: the number of the update.
      logs: its logs, or None if there was no update yet.
      state: a state whose parameters name the tensors.
      frozen: the patterns of `frozen_patterns`; what they match has no gradient.

    Raises:
      NonFiniteError: if the loss or a gradient is not finite. It names the first such tensor.
    """
    if logs is None:
        return
    loss, norm = float(logs["loss"]), float(logs["gradient_norm"])
    if np.isfinite(loss) and np.isfinite(norm):
        return
    trained, _ = split_frozen(state.params, frozen)
    tensor = first_nonfinite(np.asarray(logs["norms"]).tolist(), trained)
    culprit = f"the gradient of {tensor}" if tensor else "the loss"
    allow = "--config.checkpoint.allow"
    raise NonFiniteError(
        f"step {step}: loss {loss}, gradient norm {norm}; the first tensor that is not finite is"
        f" {culprit}. Nothing after step {step - 1} was saved. Resume from the newest checkpoint"
        f" with a lower rate, --config.optim.lr=LR {allow}=optim.lr, or with clipped gradients,"
        f" --config.optim.clip_norm=1 {allow}=optim.clip_norm. If the loss is not finite again at"
        " once, the weights of that checkpoint may be the cause: start from those of an earlier"
        " one, --config.init=RUN/checkpoints/STEP --workdir NEW, or from scratch"
    )


def first_nonfinite(norms: Sequence[float], tree: Any) -> str | None:
    """Returns the path of the first tensor whose norm is not finite, or None.

    Args:
      norms: one number per tensor of `tree`, in its order (see `squared_norms`).
      tree: the tree that names the tensors.
    """
    bad = (path for path, norm in zip(by_path(tree), norms, strict=True) if not math.isfinite(norm))
    return next(bad, None)
