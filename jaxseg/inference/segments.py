"""Segments from what the queries of a Mask2Former say: two readings of one prediction.

Both take the class and mask logits of an image's last prediction, and resize the mask logits twice,
to the network's input and then to the image, as the reference does with logits. Queries follow each
other, so that no array holds the probabilities of all masks at the size of the image.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxseg.ops.resize import resize_bilinear


class Segments(NamedTuple):
    """Parts of an image, the surest first: their pixels, classes and confidences."""

    masks: Bool[np.ndarray, "n h w"]
    classes: Int[np.ndarray, "n"]
    confidences: Float[np.ndarray, "n"]


def panoptic_segments(
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q h w"],
    input_hw: tuple[int, int],
    out_hw: tuple[int, int],
    num_classes: int,
    *,
    min_confidence: float = 0.8,
    min_kept: float = 0.8,
) -> Segments:
    """Segments that do not overlap, each scored by the probability of its class.

    Queries that say "no object", or nothing with a probability of `min_confidence`, are left out.
    Each pixel goes to the query with the largest product of the probabilities of its class and its
    mask, but only within the mask (a probability of 0.5). A query that keeps less than the share
    `min_kept` of its mask is dropped; no other gets its pixels. MaskFormer (arXiv:2107.06278),
    section 3.4; that segments end where their masks do comes from the code of Mask2Former
    (arXiv:2112.01527). Several segments may be of one class.

    Args:
      input_hw: the size of the network's input.
      out_hw: the size of the image.
      num_classes: outputs that stand for classes of the dataset; queries that say another one are
        left out.
    """
    probabilities = class_probabilities(class_logits)
    classes, confidences = np.argmax(probabilities, axis=1), np.max(probabilities, axis=1)
    no_object = probabilities.shape[1] - 1
    wanted = (classes < min(num_classes, no_object)) & (confidences >= min_confidence)
    ranking = np.argsort(np.where(wanted, -confidences, 1), kind="stable")
    classes, confidences = classes[ranking], confidences[ranking]
    owners = _owners(mask_logits[ranking], confidences, np.sum(wanted), input_hw, out_hw)
    owner, areas = map(np.asarray, owners)
    kept = np.bincount(owner[owner >= 0], minlength=len(confidences))
    found = np.flatnonzero((kept > 0) & (kept / np.maximum(areas, 1) >= min_kept))
    return Segments(owner == found[:, None, None], classes[found], confidences[found])


def instance_segments(
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q h w"],
    input_hw: tuple[int, int],
    out_hw: tuple[int, int],
    num_classes: int,
) -> Segments:
    """A segment for every query whose mask is not empty, whatever the others say.

    Its class is the most probable one besides "no object", its mask where the probability is at
    least 0.5, and its score the probability of the class times the mean of the mask's within it, as
    Mask2Former (arXiv:2112.01527) scores instances.

    Args: as of `panoptic_segments`; outputs beyond `num_classes` are not looked at.
    """
    probabilities = class_probabilities(class_logits)[:, :-1][:, :num_classes]
    classes, confidences = np.argmax(probabilities, axis=1), np.max(probabilities, axis=1)
    masks, certainty = map(np.asarray, _binary_masks(mask_logits, input_hw, out_hw))
    confidences = confidences * certainty
    found = np.flatnonzero(masks.any(axis=(1, 2)))
    found = found[np.argsort(-confidences[found], kind="stable")]
    return Segments(masks[found], classes[found], confidences[found])


def class_probabilities(class_logits: Float[Array, "q k1"]) -> Float[np.ndarray, "q k1"]:
    return np.asarray(jax.nn.softmax(class_logits.astype(jnp.float32)))


def mask_probability(
    mask_logits: Float[Array, "h w"], input_hw: tuple[int, int], out_hw: tuple[int, int]
) -> Float[Array, "H W"]:
    """One query's probability of every pixel: of the input's size first, then of the image's."""
    logits = resize_bilinear(mask_logits.astype(jnp.float32)[None, ..., None], input_hw)
    return jax.nn.sigmoid(resize_bilinear(logits, out_hw)[0, ..., 0])


@partial(jax.jit, static_argnums=(3, 4))
def _owners(mask_logits, confidences, count, input_hw, out_hw):
    """Which of the first `count` queries each pixel goes to, or -1; and the areas of their masks.

    Of equal products, the first.
    """

    def look(query, found):
        best, owner, areas = found
        probability = mask_probability(mask_logits[query], input_hw, out_hw)
        product, inside = confidences[query] * probability, probability >= 0.5
        better = product > best
        owner = jnp.where(better, jnp.where(inside, query, -1), owner)
        return jnp.where(better, product, best), owner, areas.at[query].set(jnp.sum(inside))

    nobody = jnp.full(out_hw, -1, jnp.int32)
    nothing = (jnp.zeros(out_hw), nobody, jnp.zeros(len(confidences), jnp.int32))
    return lax.fori_loop(0, count, look, nothing)[1:]


@partial(jax.jit, static_argnums=(1, 2))
def _binary_masks(mask_logits, input_hw, out_hw):
    """All masks, bool [q, H, W], and the mean probability within each, [q]."""

    def binary(mask_logits):
        probability = mask_probability(mask_logits, input_hw, out_hw)
        mask = probability >= 0.5
        return mask, jnp.mean(probability, where=mask)  # not a number where the mask is empty

    return lax.map(binary, mask_logits)
