"""Defines the training step, which is the function that is compiled, and its loss."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Integer
from ml_collections import ConfigDict

from jaxseg.distributed.sharding import compiler_options, constrain_shardings
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.mask2former import mask2former_loss
from jaxseg.losses.terms import TermSettings, sum_of_terms
from jaxseg.models.segmentation_model import ModelOutput, SegmentationModel, apply_model
from jaxseg.ops.layout import fix_row_major
from jaxseg.training.freezing import frozen_patterns, join_frozen, split_frozen
from jaxseg.training.optimizer import squared_norms
from jaxseg.training.state import TrainState


def make_train_step(
    config: ConfigDict,
    model: SegmentationModel,
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the function (state, batch) -> (state, logs) that makes one update.

    The batch holds "image" [b, h, w, 3] and "label" [b, h, w]. If the loss or a gradient is not
    finite, the step returns the state unchanged. No gradient of a frozen parameter is computed.

    Returns:
      The step, not compiled yet. Its `logs["norms"]` holds the squared norm of the gradient of
      every trained parameter, which tells the first one that is not finite.
    """
    accumulation, ema_decay = config.optim.accumulation, config.optim.ema_decay
    seed, freeze = config.seed, frozen_patterns(config.optim)

    def loss_of(trained, frozen, batch_stats, batch, rng):
        variables = {"params": join_frozen(trained, frozen), "batch_stats": batch_stats}
        output, batch_stats = apply_model(
            model, variables, batch["image"], train=True, dropout_rng=rng, frozen=freeze
        )
        points_rng = jax.random.fold_in(rng, 1)
        with jax.named_scope("loss"):
            loss, logs = total_loss(output, batch["label"], points_rng, config.loss)
        if output.displacement is not None:
            logs["displacement"] = output.displacement
        return loss, (batch_stats, {"loss": loss, **logs})

    def gradient_of(*arguments):
        gradients, rest = jax.grad(loss_of, has_aux=True)(*arguments)
        gradients = jax.tree.map(fix_row_major, gradients)
        # Shard gradients like the parameters, so that each device reduces and holds only its shard.
        return constrain_shardings(gradients, config.sharding), rest

    def accumulate(trained, frozen, batch_stats, batch, rng):
        """Averages gradients and logs over parts of the batch. Batch norm sees one part a time."""
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]), batch)
        parts = jax.tree.map(lambda x: x.swapaxes(0, 1), parts)

        def add_part(carry, part):
            total, batch_stats, index = carry
            gradients, (batch_stats, logs) = gradient_of(
                trained, frozen, batch_stats, part, jax.random.fold_in(rng, index)
            )
            total = jax.tree.map(lambda t, g: t + g / accumulation, total, gradients)
            return (total, batch_stats, index + 1), logs

        zeros = jax.tree.map(jnp.zeros_like, trained)
        start = (zeros, batch_stats, jnp.zeros((), jnp.int32))
        (gradients, batch_stats, _), logs = lax.scan(add_part, start, parts)
        return gradients, (batch_stats, jax.tree.map(jnp.mean, logs))

    def train_step(state, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        compute = gradient_of if accumulation == 1 else accumulate
        trained, frozen = split_frozen(state.params, freeze)
        gradients, (batch_stats, logs) = compute(trained, frozen, state.batch_stats, batch, rng)

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
            trained = optax.apply_updates(trained, updates)
            params, ema = join_frozen(trained, frozen), state.ema
            if ema is not None:
                averaged, _ = split_frozen(ema, freeze)
                averaged = optax.incremental_update(trained, averaged, 1 - ema_decay)
                ema = join_frozen(averaged, frozen)
        updated = TrainState(state.step + 1, params, batch_stats, opt_state, ema)

        with jax.named_scope("gradient_norms"):
            norms = squared_norms(gradients)
        logs |= {"gradient_norm": jnp.sqrt(jnp.sum(norms)), "norms": norms}
        finite = jnp.isfinite(logs["loss"]) & jnp.all(jnp.isfinite(norms))
        with jax.named_scope("keep_finite"):
            state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return state, logs

    return train_step


def jit_train_step(
    config: ConfigDict,
    model: SegmentationModel,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted `make_train_step` for the devices of a mesh.

    The step donates the state. It must be called or traced while `mesh` is set.

    Args:
      config: the recipe.
      model: the model.
      optimizer: the optimizer.
      shardings: the shardings of the state.
      mesh: the device mesh.
    """
    return jax.jit(
        make_train_step(config, model, optimizer),
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        compiler_options=compiler_options(mesh, config.deterministic),
    )


def total_loss(
    output: ModelOutput, labels: Integer[Array, "b H W"], rng: jax.Array, settings: ConfigDict
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Computes the loss that `config.loss` describes.

    Args:
      output: what the model returned for the batch.
      labels: class indices, where 255 is the ignore index.
      rng: draws the points at which Mask2Former compares masks.
      settings: `config.loss`.

    Returns:
      The loss, and its parts to be logged.
    """
    if output.masks is not None:
        classes, masks = output.masks.class_logits, output.masks.mask_logits
        return mask2former_loss(
            classes,
            masks,
            labels,
            rng,
            **settings.mask2former,
            class_weights=settings.class_weights,
        )
    loss, terms = loss_of_logits(output.logits, labels, settings)
    logs = {"decode_loss": loss, **terms}
    if output.aux_logits is not None:
        auxiliary, _ = loss_of_logits(output.aux_logits, labels, settings)
        logs["auxiliary_loss"] = settings.auxiliary_weight * auxiliary
        loss += logs["auxiliary_loss"]
    return loss, logs


def loss_of_logits(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b H W"], settings: ConfigDict
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Computes the loss of a head's logits.

    Args:
      logits: the logits, at any size.
      labels: class indices, where 255 is the ignore index.
      settings: `config.loss`.

    Returns:
      The loss, and its terms if `config.loss.terms` names several.
    """
    weighted = settings.class_weight or settings.class_weights
    changed = weighted or settings.label_smoothing or not settings.ignored_in_mean
    if not (settings.terms or changed):
        return cross_entropy(logits, labels), {}
    terms = settings.terms or (("cross_entropy", 1.0),)
    total, parts = sum_of_terms(
        logits,
        labels,
        terms,
        TermSettings(**{name: settings[name] for name in TermSettings._fields}),
        class_weights=settings.class_weights,
        ignored_in_mean=settings.ignored_in_mean,
    )
    if len(terms) == 1:
        return total, {}
    return total, {f"{name}_loss": value for name, value in parts.items()}
