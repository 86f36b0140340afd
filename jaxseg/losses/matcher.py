"""The Hungarian matcher: assigns queries to the classes of an image at the least cost.

Mask2Former (arXiv:2112.01527) matches sets, here on the device. Every class present in an image is
a target. Queries that are assigned to no target should predict "no object". The number of targets
is static, so an image with fewer classes has padding targets.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from jaxseg.distributed.sharding import map_over_batch
from jaxseg.losses.cross_entropy import IGNORE

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
# Replaces costs that are not finite, so that the assignment ends even then. The loss is then not
# finite either, and the train step leaves the state untouched.
UNKNOWN_COST = 1e6


def make_targets(
    labels: Integer[Array, "b H W"], num_classes: int, max_targets: int
) -> tuple[Integer[Array, "b t"], Bool[Array, "b t"], Integer[Array, ""]]:
    """Lists the classes present in each image as targets, in ascending order.

    Args:
      labels: the class of every pixel; 255 belongs to no class.
      num_classes: the number of classes.
      max_targets: the number of targets per image, including padding.

    Returns:
      The class of each target, which targets are not padding, and how many present classes of the
      batch did not fit.
    """

    # Comparing `labels == class` would form one whole mask per class before the reduction.
    @map_over_batch
    @jax.vmap
    def present_in(label):
        return jnp.zeros(num_classes, bool).at[label.reshape(-1)].set(True, mode="drop")

    present = present_in(labels) & (jnp.arange(num_classes) != IGNORE)[None]
    targets = jnp.argsort(~present, axis=1, stable=True)[:, :max_targets].astype(labels.dtype)
    valid = jnp.take_along_axis(present, targets, axis=1)
    return targets, valid, jnp.sum(present) - jnp.sum(valid)


def matching_cost(
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q n"],
    targets: Integer[Array, " t"],
    target_masks: Float[Array, "t n"],
) -> Float[Array, "q t"]:
    """Computes the cost of assigning each query of an image to each target.

    The cost is the sum of three terms, and is finite for any logits:

    - 2 × the negative probability of the class
    - 5 × the mean binary cross-entropy of the mask
    - 5 × the dice loss of the mask

    Args:
      class_logits: the class logits of every query.
      mask_logits: the mask logits of every query at `n` points.
      targets: the class of every target.
      target_masks: the mask of every target at the same points, which may be soft.
    """
    points = mask_logits.shape[1]
    of_class = -jax.nn.softmax(class_logits.astype(jnp.float32))[:, targets]
    # The cross-entropy of logit x and target g is softplus(x) − x·g, so that one matrix product
    # serves all pairs.
    negative = jnp.sum(jax.nn.softplus(mask_logits), axis=1)
    of_mask = (negative[:, None] - _products(mask_logits, target_masks)) / points
    probability = jax.nn.sigmoid(mask_logits)
    areas = jnp.sum(probability, axis=1)[:, None] + jnp.sum(target_masks, axis=1)[None]
    of_dice = 1 - (2 * _products(probability, target_masks) + 1) / (areas + 1)
    cost = CLASS_WEIGHT * of_class + MASK_WEIGHT * of_mask + DICE_WEIGHT * of_dice
    return jnp.where(jnp.isfinite(cost), cost, UNKNOWN_COST)


def _products(queries, targets):
    return jnp.einsum("qn,tn->qt", queries, targets, precision=lax.Precision.HIGHEST)


def assign_targets(cost: Float[Array, "q t"], valid: Bool[Array, " t"]) -> Integer[Array, " t"]:
    """Assigns a different query to every target, at the least total cost of the valid targets.

    Padding targets take queries that are left over. They cost the same with every query, so they do
    not affect the other targets.

    Args:
      cost: the cost of every query and target, with at least as many queries as targets.
      valid: which targets are not padding.

    Returns:
      The index of the query of every target.
    """
    queries, targets = optax.assignment.hungarian_algorithm(jnp.where(valid, cost, 0.0))
    return queries[jnp.argsort(targets)]
