"""What training carries from step to step."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxseg.models.segmentation_model import SegmentationModel, Variables, init_variables


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on, besides the batch.

    The batch of step k is a function of the seed and k, and so are its random numbers: the step is
    the data position. `ema` is a moving average of `params`, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any = None

    def variables(self) -> Variables:
        """What is evaluated: the moving average where there is one."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(
    config: ConfigDict,
    model: SegmentationModel,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """A fresh state; every value follows from the seed."""
    rng = jax.random.key(config.seed)
    variables = init_variables(model, rng, config.data.crop_hw)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
        # A copy: two names for one buffer could not both be donated to the step.
        ema=jax.tree.map(jnp.copy, params) if config.optim.ema_decay else None,
    )
