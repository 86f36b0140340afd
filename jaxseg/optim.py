"""The optimizer of the published recipes: AdamW with layer-wise rates, by rules over paths."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxseg.paths import by_path, path_of

NO_DECAY = re.compile("norm|relative_position|sampling_offsets")


def decays(path: str, parameter: jax.Array) -> bool:
    """Whether weight decay applies: not to vectors, norms and position tables."""
    return parameter.ndim > 1 and not NO_DECAY.search(path)


def layer_id_rules(backbone: ConfigDict) -> list[tuple[str, int]]:
    """(pattern, layer) for every parameter; the first match counts. Heads are the last layer.

    The layers of InternImage as the reference numbers them: the stem is 0, blocks count on from 1.
    A stage's closing norm and its downsampling belong with the first block of the *next* stage; the
    last stage's norm with the first block of its own. The norms on the trunk of InternImage-H
    (`post_norms_k`) are taken for block k of their stage.
    """
    depths = backbone.depths
    rules = [("backbone/patch_embed/", 0)]
    for stage, depth in enumerate(depths):
        first = 1 + sum(depths[:stage])
        for block in range(depth):
            name = f"backbone/levels_{stage}/(blocks|post_norms)_{block}/"
            rules.append((name, first + block))
        last_stage = stage == len(depths) - 1
        closing = first if last_stage else first + depth
        rules.append((f"backbone/levels_{stage}/(norm|downsample)/", closing))
    rules.append(("(decode|auxiliary)_head/", sum(depths) + 1))
    return rules


def learning_rate_scale(path: str, rules: Sequence[tuple[str, int]], decay: float) -> float:
    """decay ** (layers above this parameter's).

    Raises:
      ValueError: for a parameter that no rule covers.
    """
    for pattern, layer in rules:
        if re.match(pattern, path):
            return decay ** (rules[-1][1] - layer)
    raise ValueError(f"optim: no layer rule covers parameter {path}")


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Polynomial decay to zero times a linear warm-up; the factor multiplies the decayed value.

    lr(t) = lr · (1 - t/T)^power · (r + (1 - r) · min(t/W, 1)), of T steps and W of warm-up.
    """
    warmup_steps, ratio = config.warmup_steps, config.warmup_ratio

    def rate(count):
        t = jnp.asarray(count, jnp.float32)
        decayed = config.lr * (1 - t / steps) ** config.power
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


def make(config: ConfigDict, backbone: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer that `config.optim` describes, for `steps` updates of a model on `backbone`.

    One stateless multiplier tree after Adam and decay stands for the dozens of parameter groups of
    the reference.
    """
    rules = layer_id_rules(backbone)
    rate = schedule(config, steps)

    def scale_by_layer(updates, params):
        def scaled(key_path, update):
            return update * learning_rate_scale(path_of(key_path), rules, config.layer_decay)

        return jax.tree_util.tree_map_with_path(scaled, updates)

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(lambda k, p: decays(path_of(k), p), params)

    clip = config.clip_norm
    return optax.chain(
        clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(*config.betas, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.stateless(scale_by_layer),
        optax.scale_by_learning_rate(rate),
    )


def squared_norms(gradients: Any) -> jax.Array:
    """The squared norm of every tensor of a tree, in its order, float32."""
    leaves = jax.tree.leaves(gradients)
    return jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves])


def first_nonfinite(norms: Sequence[float], tree: Any) -> str | None:
    """The path of the first tensor of `tree` whose norm (see `squared_norms`) is not finite."""
    bad = (path for path, norm in zip(by_path(tree), norms, strict=True) if not math.isfinite(norm))
    return next(bad, None)
