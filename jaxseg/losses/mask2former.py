"""The loss of Mask2Former (arXiv:2112.01527, section 3.3), computed inside the compiled step.

Each prediction of the decoder is matched separately with the classes of its image, and all
predictions have the same weight. Masks are compared only at random points (section 3.3.2). The
target masks are sampled from the label map and never formed. All arithmetic is in float32.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from jaxseg.distributed.sharding import map_over_batch
from jaxseg.losses.matcher import (
    CLASS_WEIGHT,
    DICE_WEIGHT,
    MASK_WEIGHT,
    assign_targets,
    make_targets,
    matching_cost,
)
from jaxseg.losses.point_sampling import (
    point_sample,
    random_points,
    sample_class,
    sample_uncertain_points,
)

NO_OBJECT_WEIGHT = 0.1


def mask2former_loss(
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: Integer[Array, "b H W"],
    rng: jax.Array,
    *,
    num_points: int = 12544,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    max_targets: int,
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Computes the sum of the class, mask and dice losses of all `p` predictions.

    Pixels labeled 255 are outside every mask, as in the reference, whose mask loss ignores no
    pixels. The class loss is divided by the summed weights of the queries' classes. The mask and
    dice losses are divided by the number of targets. Both divisors are those of the whole batch.

    The points of an image depend on `rng` and on its place in the batch. The loss is therefore
    independent of how the batch is sharded.

    Args:
      class_logits: the class logits of every query; the last class is "no object".
      mask_logits: the mask logits of every query.
      labels: the class of every pixel, or 255.
      rng: the random key for the points.
      num_points: the number of points at which each mask is compared.
      oversample_ratio: the number of candidate points, as a multiple of `num_points`.
      importance_sample_ratio: the share of points that are the most uncertain candidates. The other
        points are uniformly random.
      max_targets: the number of classes per image that can be targets, in ascending order. The log
        `targets_dropped` counts the other classes that are present, over the batch.
      class_weights: the weight of each class in the class loss; empty: 1.

    Returns:
      The loss, and the values to log: `loss_cls`, `loss_mask` and `loss_dice` of the last
      prediction, and `targets_dropped`.

    Raises:
      ValueError: if `max_targets` is larger than the number of queries.
    """
    predictions, b, queries, classes = class_logits.shape
    if max_targets > queries:
        raise ValueError(f"mask2former_loss: {max_targets} targets for {queries} queries")
    targets, valid, dropped = make_targets(labels, classes - 1, max_targets)
    matching_keys, comparison_keys = jax.random.split(rng, (2, predictions, b))

    @map_over_batch
    @jax.vmap
    def cost(class_logits, mask_logits, labels, targets, key):
        points = random_points(key, num_points)
        return image_cost(class_logits, mask_logits, labels, targets, points)

    @map_over_batch
    @jax.vmap
    def losses(class_logits, mask_logits, labels, targets, valid, assigned, key):
        points = draw_comparison_points(
            key, mask_logits, assigned, num_points, oversample_ratio, importance_sample_ratio
        )
        # Intermediate values are recomputed in the backward pass: they are much larger than the
        # points.
        return jax.checkpoint(partial(image_losses, class_weights=class_weights))(
            class_logits, mask_logits, labels, targets, valid, assigned, points
        )

    # One prediction at a time: the queries' logits at all points are the largest arrays here.
    costs = lax.map(
        lambda of: cost(of[0], of[1], labels, targets, of[2]),
        (*lax.stop_gradient((class_logits, mask_logits)), matching_keys),
    )
    # All assignments run at once, since each is a long chain of small steps.
    assign_all = map_over_batch(jax.vmap(jax.vmap(assign_targets, in_axes=(0, None))))
    assigned = assign_all(costs.swapaxes(0, 1), valid).swapaxes(0, 1)  # [p, b, t]
    sums = lax.map(
        lambda of: losses(of[0], of[1], labels, targets, valid, of[2], of[3]),
        (class_logits, mask_logits, assigned, comparison_keys),
    )
    of_predictions = normalized(*sums, valid)
    logs = {name: values[-1] for name, values in of_predictions.items()}
    total = sum(jnp.sum(values) for values in of_predictions.values())
    return total, logs | {"targets_dropped": dropped}


def image_cost(
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q h w"],
    labels: Integer[Array, "H W"],
    targets: Integer[Array, " t"],
    points: Float[Array, "n 2"],
) -> Float[Array, "q t"]:
    """Computes the matching costs of one image, with all masks compared at the same points."""
    target_masks = jax.vmap(sample_class, in_axes=(None, 0, None))(labels, targets, points)
    return matching_cost(class_logits, point_sample(mask_logits, points), targets, target_masks)


def draw_comparison_points(
    rng: jax.Array,
    mask_logits: Float[Array, "q h w"],
    assigned: Integer[Array, " t"],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Float[Array, "t n 2"]:
    """Draws the points at which the masks of one image are compared, separately for each target.

    `comparison_points` chooses them from random candidates.

    Args:
      rng: the random key of the image.
      mask_logits: the mask logits of all queries.
      assigned: the query assigned to each target.
      num_points: the number of points per target.
      oversample_ratio: the number of candidates, as a multiple of `num_points`.
      importance_sample_ratio: the share of points that are the most uncertain candidates.
    """
    uncertain = int(importance_sample_ratio * num_points)
    candidates_key, fresh_key = jax.random.split(rng)
    return comparison_points(
        mask_logits[assigned],
        random_points(candidates_key, len(assigned), int(oversample_ratio * num_points)),
        random_points(fresh_key, len(assigned), num_points - uncertain),
        uncertain,
    )


def comparison_points(
    mask_logits: Float[Array, "t h w"],
    candidates: Float[Array, "t m 2"],
    fresh: Float[Array, "t f 2"],
    uncertain: int,
) -> Float[Array, "t n 2"]:
    """Selects the points of each mask's loss: its most uncertain candidates, then `fresh` points.

    Args:
      mask_logits: the mask logits of the queries assigned to the targets.
      candidates: the points to choose from.
      fresh: the points that are taken in any case.
      uncertain: the number of candidates to choose.
    """
    choose = jax.vmap(partial(sample_uncertain_points, count=uncertain))
    return jnp.concatenate([choose(lax.stop_gradient(mask_logits), candidates), fresh], axis=1)


def image_losses(
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q h w"],
    labels: Integer[Array, "H W"],
    targets: Integer[Array, " t"],
    valid: Bool[Array, " t"],
    assigned: Integer[Array, " t"],
    points: Float[Array, "t n 2"],
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, ""], ...]:
    """Computes the loss sums of one image and one prediction, before normalization.

    Returns:
      The weighted sum of class losses, the sum of their weights, the sum of mask losses, and the
      sum of dice losses.
    """
    no_object = class_logits.shape[1] - 1
    query_classes = jnp.full(len(class_logits), no_object, targets.dtype)
    query_classes = query_classes.at[assigned].set(jnp.where(valid, targets, no_object))
    logits = jax.vmap(lambda mask, points: point_sample(mask[None], points)[0])(
        mask_logits[assigned], points
    )
    masks = jax.vmap(sample_class, in_axes=(None, 0, 0))(labels, targets, points)
    return (
        *class_loss(class_logits, query_classes, class_weights),
        jnp.sum(jnp.where(valid, mask_loss(logits, masks), 0.0)),
        jnp.sum(jnp.where(valid, dice_loss(logits, masks), 0.0)),
    )


def class_loss(
    logits: Float[Array, "q k1"],
    classes: Integer[Array, " q"],
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the weighted sum of the queries' cross-entropies, and the sum of the weights.

    The weight of a query is that of its class, by default 1, or 0.1 if its class is "no object".
    """
    every_class = jnp.arange(logits.shape[1], dtype=classes.dtype)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    is_class = classes[:, None] == every_class[None]
    entropies = -jnp.sum(jnp.where(is_class, log_probabilities, 0.0), axis=1)
    # A head may have more outputs than the dataset has classes.
    others = (1.0,) * (logits.shape[1] - 1 - len(class_weights))
    of_classes = (*class_weights, *others, NO_OBJECT_WEIGHT)
    weights = jnp.sum(jnp.where(is_class, jnp.asarray(of_classes, jnp.float32)[None], 0.0), axis=1)
    return jnp.sum(weights * entropies), jnp.sum(weights)


def mask_loss(logits: Float[Array, "t n"], masks: Float[Array, "t n"]) -> Float[Array, " t"]:
    """Computes the binary cross-entropy of each mask, averaged over its points."""
    return jnp.mean(jax.nn.softplus(logits) - logits * masks, axis=1)


def dice_loss(logits: Float[Array, "t n"], masks: Float[Array, "t n"]) -> Float[Array, " t"]:
    """Computes the dice loss of each mask, 1 − (2·Σpg + 1)/(Σp + Σg + 1).

    p is the sigmoid of the logits, and g is the target mask.
    """
    probability = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probability * masks, axis=1)
    return 1 - (2 * overlap + 1) / (jnp.sum(probability, axis=1) + jnp.sum(masks, axis=1) + 1)


def normalized(
    class_sums: Float[Array, "p b"],
    class_weights: Float[Array, "p b"],
    mask_sums: Float[Array, "p b"],
    dice_sums: Float[Array, "p b"],
    valid: Bool[Array, "b t"],
) -> dict[str, Float[Array, " p"]]:
    """Computes the weighted losses of every prediction from the sums of all images.

    Args:
      class_sums: the sums of class losses, from `image_losses`.
      class_weights: the sums of their weights.
      mask_sums: the sums of mask losses.
      dice_sums: the sums of dice losses.
      valid: which targets are not padding.
    """
    num_masks = jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
    return {
        "loss_cls": CLASS_WEIGHT * jnp.sum(class_sums, axis=1) / jnp.sum(class_weights, axis=1),
        "loss_mask": MASK_WEIGHT * jnp.sum(mask_sums, axis=1) / num_masks,
        "loss_dice": DICE_WEIGHT * jnp.sum(dice_sums, axis=1) / num_masks,
    }
