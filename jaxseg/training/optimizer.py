"""AdamW as in the published recipes, with learning rate and decay set by rules over paths."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxseg.errors import ConfigError
from jaxseg.parameter_paths import path_of
from jaxseg.training import parameter_groups


def learning_rate_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Returns the schedule that `config.optim.schedule` names.

    Args:
      config: `config.optim`.
      steps: the number of updates of the whole run.

    Raises:
      ConfigError: if there is no such schedule.
    """
    schedules = {"polynomial": polynomial_schedule, "dinov3": dinov3_schedule}
    if config.schedule not in schedules:
        known = " or ".join(map(repr, schedules))
        raise ConfigError(f"config.optim.schedule={config.schedule}: must be {known}")
    return schedules[config.schedule](config, steps)


def dinov3_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Returns the schedule of DINOv3's linear head: a linear warm-up, then half a cosine to zero.

    With T steps, W of them of warm-up from the ratio r, the rate is

        lr · (r + (1 - r) · s/W) · (1 - s/T)    for s < W,
        lr · (1 + cos(π (s + 1) / T)) / 2       after that.

    s is the step t - 1: the original's scheduler stays behind by one, so the first two steps share
    a rate.

    Args:
      config: `config.optim`, of which `lr`, `warmup_steps` and `warmup_ratio` are read.
      steps: T, the number of updates of the whole run.
    """
    warmup_steps, ratio = config.warmup_steps, config.warmup_ratio

    def rate(count):
        s = jnp.maximum(jnp.asarray(count, jnp.float32) - 1, 0.0)
        warmup = ratio + (1 - ratio) * s / max(warmup_steps, 1)
        # 1 + cos(x) loses float32 digits towards the end of the run.
        cosine = jnp.square(jnp.sin(0.5 * jnp.pi * (steps - 1 - s) / steps))
        return config.lr * jnp.where(s < warmup_steps, warmup * (steps - s) / steps, cosine)

    return rate


def polynomial_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Returns a schedule that multiplies polynomial decay to zero by a linear warm-up.

    lr(t) = lr · (1 - t/T)^power · (r + (1 - r) · min(t/W, 1)), where T is the number of steps,
    W the number of warm-up steps and r the warm-up ratio. The warm-up factor multiplies the
    decayed value, not the base rate. Halfway through a warm-up of 10 steps from 0, in a run of 100:

    >>> config = ConfigDict({"lr": 1.0, "power": 1.0, "warmup_steps": 10, "warmup_ratio": 0.0})
    >>> round(float(polynomial_schedule(config, steps=100)(5)), 4)
    0.475

    Args:
      config: `config.optim`, of which `lr`, `power`, `warmup_steps` and `warmup_ratio` are read.
      steps: T, the number of updates of the whole run.
    """
    warmup_steps, ratio = config.warmup_steps, config.warmup_ratio

    def rate(count):
        t = jnp.asarray(count, jnp.float32)
        # 1 - t / T would lose float32 digits towards the end of the run.
        decayed = config.lr * ((steps - t) / steps) ** config.power
        warmup = ratio + (1 - ratio) * jnp.minimum(t / max(warmup_steps, 1), 1.0)
        return decayed * warmup

    return rate


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns a transformation that clips gradients by their global norm, as PyTorch does.

    Gradients are multiplied by max_norm / (norm + 1e-6) where that factor is below 1.
    """

    def update(gradients, state, params=None):
        norm = jnp.sqrt(jnp.sum(squared_norms(gradients)))
        factor = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * factor, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
    config: ConfigDict, backbone: ConfigDict, steps: int
) -> optax.GradientTransformation:
    """Builds the optimizer that `config.optim` describes.

    The reference uses dozens of parameter groups. Here one stateless transformation after Adam
    replaces them.

    Args:
      config: `config.optim`.
      backbone: `config.model.backbone`, whose kind decides the rules over paths.
      steps: number of updates of the whole run.

    Raises:
      ConfigError: if `config` sets rates both by layer and by name.
    """
    group_of = parameter_groups.make_group_fn(config, backbone)

    def decay_and_scale(updates, params):
        def of_parameter(key_path, update, parameter):
            group = group_of(path_of(key_path), parameter.ndim)
            decay = config.weight_decay * group.weight_decay
            return group.learning_rate * (update + decay * parameter)

        return jax.tree_util.tree_map_with_path(of_parameter, updates, params)

    clip = config.clip_norm
    return optax.chain(
        clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(*config.betas, eps=1e-8),
        optax.stateless(decay_and_scale),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
    )


def squared_norms(gradients: Any) -> jax.Array:
    """Returns the squared norms of all tensors of a tree, as float32 [n] in the tree's order."""
    leaves = jax.tree.leaves(gradients)
    return jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves])
