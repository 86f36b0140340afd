"""The optimizer of the published recipes: AdamW, with rates and decay by rules over paths."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxseg.parameter_paths import by_path, path_of
from jaxseg.training import parameter_groups


def learning_rate_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Polynomial decay to zero times a linear warm-up; the factor multiplies the decayed value.

    lr(t) = lr · (1 - t/T)^power · (r + (1 - r) · min(t/W, 1)), of T steps and W of warm-up.
    """
    warmup_steps, ratio = config.warmup_steps, config.warmup_ratio

    def rate(count):
        t = jnp.asarray(count, jnp.float32)
        # Not 1 - t / T, which has few digits left towards the end.
        decayed = config.lr * ((steps - t) / steps) ** config.power
        warmup = ratio + (1 - ratio) * jnp.minimum(t / max(warmup_steps, 1), 1.0)
        return decayed * warmup

    return rate


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Clipping as PyTorch does it: by max_norm / (norm + 1e-6) where that is below 1."""

    def update(gradients, state, params=None):
        norm = jnp.sqrt(jnp.sum(squared_norms(gradients)))
        factor = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * factor, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
    config: ConfigDict, backbone: ConfigDict, steps: int
) -> optax.GradientTransformation:
    """The optimizer that `config.optim` describes, for `steps` updates of a model on `backbone`.

    One stateless transformation after Adam stands for the dozens of parameter groups of the
    reference.
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
    """The squared norm of every tensor of a tree, in its order, float32."""
    leaves = jax.tree.leaves(gradients)
    return jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves])


def first_nonfinite(norms: Sequence[float], tree: Any) -> str | None:
    """The path of the first tensor of `tree` whose norm (see `squared_norms`) is not finite."""
    bad = (path for path, norm in zip(by_path(tree), norms, strict=True) if not math.isfinite(norm))
    return next(bad, None)
