"""Which query predicts which class of an image: the least costly assignment, on the device.

Mask2Former (arXiv:2112.01527) matches sets: every class present in an image is a target, and the
queries that are assigned none shall predict "no object". The number of targets is static; those
that an image has not are padding.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxseg.distributed.sharding import map_over_batch
from jaxseg.losses.cross_entropy import IGNORE

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
# Stands for a cost that is not a number. The assignment has to end even then: it is the loss that
# says so, and the step that leaves the state untouched.
UNKNOWN_COST = 1e6


def make_targets(
    labels: Int[Array, "b H W"], num_classes: int, max_targets: int
) -> tuple[Int[Array, "b t"], Bool[Array, "b t"], Int[Array, ""]]:
    """The classes present in each image, ascending; which of them are no padding; and how many
    classes of the batch did not fit. The pixels of 255 are of no class."""

    # Not `labels == class`, which would be as many whole masks before they are summed up.
    @map_over_batch
    @jax.vmap
    def present_in(label):
        return jnp.zeros(num_classes, bool).at[label.reshape(-1)].set(True, mode="drop")

    present = present_in(labels) & (jnp.arange(num_classes) != IGNORE)
    targets = jnp.argsort(~present, axis=1, stable=True)[:, :max_targets].astype(labels.dtype)
    valid = jnp.take_along_axis(present, targets, axis=1)
    return targets, valid, jnp.sum(present) - jnp.sum(valid)


def matching_cost(
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q n"],
    targets: Int[Array, "t"],
    target_masks: Float[Array, "t n"],
) -> Float[Array, "q t"]:
    """What it costs each query of an image to be assigned each target.

    2 × the negative probability of the class + 5 × the mean binary cross-entropy and 5 × the dice
    loss of the mask, over `n` points; the target's mask may be soft. Finite for any logits.
    """
    points = mask_logits.shape[1]
    of_class = -jax.nn.softmax(class_logits.astype(jnp.float32))[:, targets]
    # The cross-entropy of logit x and target g is softplus(x) − x·g, so that one product of
    # matrices serves all pairs.
    negative = jnp.sum(jax.nn.softplus(mask_logits), axis=1)
    of_mask = (negative[:, None] - _products(mask_logits, target_masks)) / points
    probability = jax.nn.sigmoid(mask_logits)
    areas = jnp.sum(probability, axis=1)[:, None] + jnp.sum(target_masks, axis=1)
    of_dice = 1 - (2 * _products(probability, target_masks) + 1) / (areas + 1)
    cost = CLASS_WEIGHT * of_class + MASK_WEIGHT * of_mask + DICE_WEIGHT * of_dice
    return jnp.where(jnp.isfinite(cost), cost, UNKNOWN_COST)


def _products(queries, targets):
    return jnp.einsum("qn,tn->qt", queries, targets, precision=lax.Precision.HIGHEST)


def assign_targets(cost: Float[Array, "q t"], valid: Bool[Array, "t"]) -> Int[Array, "t"]:
    """The query of every target, each another, such that the valid ones together cost least.

    Padding takes queries that are left over: it costs the same with all of them, so that it
    changes nothing for the others. There are at least as many queries as targets.
    """
    queries, targets = optax.assignment.hungarian_algorithm(jnp.where(valid, cost, 0.0))
    return queries[jnp.argsort(targets)]
