"""Defines the training state and creates a fresh one."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from ml_collections import ConfigDict

from jaxseg.models.lora import add_low_rank
from jaxseg.models.segmentation_model import SegmentationModel, Variables, init_variables
from jaxseg.training.freezing import cast_frozen, frozen_patterns, split_frozen


@struct.dataclass
class TrainState:
    """Holds everything that the next step depends on, except the batch.

    The batch and the random numbers of step k are functions of the seed and k. The step is
    therefore the data position.

    Attributes:
      step: number of updates made, int32.
      params: the parameters.
      batch_stats: the running statistics of batch norm.
      opt_state: the state of the optimizer, which holds nothing of frozen parameters.
      ema: a moving average of `params`, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any = None

    def variables(self) -> Variables:
        """Returns the variables to evaluate, with the moving average if there is one."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(
    config: ConfigDict,
    model: SegmentationModel,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """Creates a fresh state, all of whose values follow from `config.seed`."""
    rng = jax.random.key(config.seed)
    variables = init_variables(model, rng, config.data.crop_hw)
    params = variables["params"]
    if config.optim.lora.rank:
        params = add_low_rank(params, jax.random.fold_in(rng, 1), config.optim.lora)
    params = cast_frozen(params, config.optim)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(split_frozen(params, frozen_patterns(config.optim))[0]),
        # A copy, because one buffer under two names could not be donated to the step twice.
        ema=jax.tree.map(jnp.copy, params) if config.optim.ema_decay else None,
    )
