"""Panoptic and instance segments from Mask2Former's query predictions.

Both take the class and mask logits of the last prediction for an image. They resize the mask logits
twice, to the network's input and then to the image, as the reference does with logits. Queries are
processed one at a time. No array therefore holds the probabilities of all masks at image size.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from jaxseg.errors import ConfigError
from jaxseg.ops.resize import resize_bilinear


class Segments(NamedTuple):
    """Holds the segments of an image, in descending order of confidence.

    Attributes:
      masks: the pixels of each segment.
      classes: the class of each segment.
      confidences: the confidence of each segment, in 0..1.
    """

    masks: Bool[np.ndarray, "n h w"]
    classes: Integer[np.ndarray, " n"]
    confidences: Float[np.ndarray, " n"]

    def to_supervision(self) -> Any:
        """Returns the segments as `supervision.Detections`, which supervision draws and tracks.

        Its boxes, [n, 4] in pixels, are left, top, right and bottom. As in `mask_to_xyxy` of
        supervision, right and bottom are the last pixels of a mask.

        Raises:
          ConfigError: if the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ConfigError(
                "to_supervision needs the package supervision: pip install supervision"
            ) from error
        rows, columns = self.masks.any(axis=2), self.masks.any(axis=1)
        boxes = np.zeros((len(self.masks), 4), np.float32)
        for box, y, x in zip(
            boxes, map(np.flatnonzero, rows), map(np.flatnonzero, columns), strict=True
        ):
            if len(y):
                box[:] = x[0], y[0], x[-1], y[-1]
        return supervision.Detections(
            xyxy=boxes, mask=self.masks, confidence=self.confidences, class_id=self.classes
        )


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
    """Returns segments that do not overlap, each scored by the probability of its class.

    Queries are skipped if they predict "no object" or have no class probability of at least
    `min_confidence`. Each pixel is assigned to the query with the largest product of class and mask
    probability, but only within its mask (a probability of at least 0.5). A query that keeps less
    than the share `min_kept` of its mask is dropped, and no other query gets its pixels. Several
    segments may have the same class.

    The rule is that of MaskFormer (arXiv:2107.06278), section 3.4. That segments end where their
    masks do comes from the code of Mask2Former (arXiv:2112.01527).

    Args:
      class_logits: the class logits of every query, of which the last is "no object".
      mask_logits: the mask logits of every query.
      input_hw: height and width of the network's input.
      out_hw: height and width of the image.
      num_classes: number of leading outputs that are classes of the dataset. Queries that predict
        any other output are skipped.
      min_confidence: the smallest class probability of a segment.
      min_kept: the smallest share of its mask that a segment may keep.
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
    """Returns one segment per query whose mask is not empty. Segments may overlap.

    The class is the most probable one apart from "no object". The mask is where the mask
    probability is at least 0.5. The confidence is the class probability times the mean mask
    probability within the mask, as Mask2Former (arXiv:2112.01527) scores instances.

    Args:
      class_logits: the class logits of every query, of which the last is "no object".
      mask_logits: the mask logits of every query.
      input_hw: height and width of the network's input.
      out_hw: height and width of the image.
      num_classes: number of leading outputs that are classes of the dataset. Other outputs are
        ignored.
    """
    probabilities = class_probabilities(class_logits)[:, :-1][:, :num_classes]
    classes, confidences = np.argmax(probabilities, axis=1), np.max(probabilities, axis=1)
    masks, certainty = map(np.asarray, _binary_masks(mask_logits, input_hw, out_hw))
    confidences = confidences * certainty
    found = np.flatnonzero(masks.any(axis=(1, 2)))
    found = found[np.argsort(-confidences[found], kind="stable")]
    return Segments(masks[found], classes[found], confidences[found])


def class_probabilities(class_logits: Float[Array, "q k1"]) -> Float[np.ndarray, "q k1"]:
    """Returns the softmax over the class logits of each query, in float32 on the host."""
    return np.asarray(jax.nn.softmax(class_logits.astype(jnp.float32)))


def mask_probability(
    mask_logits: Float[Array, "h w"], input_hw: tuple[int, int], out_hw: tuple[int, int]
) -> Float[Array, "H W"]:
    """Returns one query's mask probability of every pixel of the image.

    The logits are resized to the network's input `input_hw` first, then to the image `out_hw`.
    """
    logits = resize_bilinear(mask_logits.astype(jnp.float32)[None, ..., None], input_hw)
    return jax.nn.sigmoid(resize_bilinear(logits, out_hw)[0, ..., 0])


@partial(jax.jit, static_argnums=(3, 4))
def _owners(mask_logits, confidences, count, input_hw, out_hw):
    """Returns the query that each pixel is assigned to, or -1, and the area of each query's mask.

    Only the first `count` queries take part. If two products are equal, the first query wins.
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
    """Returns all masks, bool [q, H, W], and the mean probability within each, [q]."""

    def binary(mask_logits):
        probability = mask_probability(mask_logits, input_hw, out_hw)
        mask = probability >= 0.5
        return mask, jnp.mean(probability, where=mask)  # NaN if the mask is empty

    return lax.map(binary, mask_logits)
