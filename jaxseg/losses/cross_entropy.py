"""The cross-entropy loss and the pixel accuracy of semantic segmentation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxseg.ops.resize import resize_bilinear

IGNORE = 255


def cross_entropy(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b H W"]
) -> Float[Array, ""]:
    """Computes the mean cross-entropy of logits that are resized to the label, in float32.

    The mean is over *all* pixels. Pixels labeled 255 add nothing to the sum but count in the
    denominator. The reference does the same: its `avg_non_ignore` is off in every published config.

    Args:
      logits: the logits of `k` classes, at any size.
      labels: the class of every pixel; 255 is ignored.
    """
    logits = resize_bilinear(logits.astype(jnp.float32), labels.shape[1:])
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    # A comparison replaces a gather, whose gradient would be a scatter. A label of 255 matches no
    # class unless there are more than 255 classes, hence the mask below.
    is_label = labels[..., None] == classes[None, None, None]
    of_label = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    per_pixel = jax.nn.logsumexp(logits, axis=-1) - of_label
    return jnp.mean(jnp.where(labels == IGNORE, 0.0, per_pixel))


def pixel_accuracy(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b H W"]
) -> Float[Array, ""]:
    """Computes the share of labeled pixels whose highest resized logit is the label's, in 0..1.

    Args:
      logits: the logits of `k` classes, at any size.
      labels: the class of every pixel; 255 means unlabeled.
    """
    logits = resize_bilinear(logits.astype(jnp.float32), labels.shape[1:])
    labeled = labels != IGNORE
    correct = (jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels) & labeled
    return jnp.sum(correct) / jnp.maximum(jnp.sum(labeled), 1)
