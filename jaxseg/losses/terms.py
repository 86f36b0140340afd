"""Losses for rare classes and small data, and weighted sums of several of them.

`config.loss.terms` names them. The logits are resized to the label and exist as a whole, in
float32, once for the forward and once for the backward pass. The plain cross-entropy needs less
memory (`jaxseg.losses.cross_entropy`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from jaxseg.errors import ConfigError
from jaxseg.losses.cross_entropy import IGNORE
from jaxseg.ops.resize import resize_bilinear


class Pixels(NamedTuple):
    """Holds the pixels of a batch.

    Attributes:
      log_probabilities: of every class.
      targets: one for the class of a pixel, else zero; zeros for an ignored pixel.
      labeled: which pixels are not ignored.
      weights: the weight of the pixel's class; 0 for an ignored pixel.
      count: the number of pixels that a mean is over.
    """

    log_probabilities: Float[Array, "b h w k"]
    targets: Float[Array, "b h w k"]
    labeled: Bool[Array, "b h w"]
    weights: Float[Array, "b h w"]
    count: Float[Array, ""]


class TermSettings(NamedTuple):
    """Holds the settings of the terms.

    Attributes:
      label_smoothing: the share of a target that is spread over all classes.
      focal_gamma: the exponent of the focal loss.
      ohem_threshold: OHEM counts pixels whose class has a lower probability.
      ohem_kept: the least share of an image's pixels that OHEM counts.
      tversky: the weights of false positives and of false negatives.
    """

    label_smoothing: float
    focal_gamma: float
    ohem_threshold: float
    ohem_kept: float
    tversky: tuple[float, float]


def cross_entropy(pixels: Pixels, settings: TermSettings) -> Float[Array, ""]:
    """Computes the mean cross-entropy, with smoothed labels (arXiv:1512.00567, section 7)."""
    return _mean(_cross_entropies(pixels, settings), pixels)


def _cross_entropies(pixels, settings):
    targets = optax.smooth_labels(pixels.targets, settings.label_smoothing)
    return -jnp.sum(targets * pixels.log_probabilities, axis=-1)


def _mean(values, pixels):
    return jnp.sum(pixels.weights * values) / pixels.count


def _of_label(pixels):
    """Returns the log-probability of every pixel's class."""
    return jnp.sum(pixels.targets * pixels.log_probabilities, axis=-1)


def focal(pixels: Pixels, settings: TermSettings) -> Float[Array, ""]:
    """Computes the mean focal loss of the softmax, −(1 − p)^γ · log p (arXiv:1708.02002)."""
    log_probability = _of_label(pixels)
    # The exponent of 1 − p has no gradient where p is 1, which ignored pixels are set to.
    log_probability = jnp.minimum(log_probability, -1e-7)
    missing = -jnp.expm1(log_probability)
    return _mean(-(missing**settings.focal_gamma) * log_probability, pixels)


def ohem(pixels: Pixels, settings: TermSettings) -> Float[Array, ""]:
    """Computes the mean cross-entropy of the hard pixels of every image (arXiv:1604.03540).

    Hard are the pixels whose class has a probability below `ohem_threshold`, and in any case the
    share `ohem_kept` of the labeled pixels with the lowest ones.
    """
    log_probability = jnp.where(pixels.labeled, lax.stop_gradient(_of_label(pixels)), jnp.inf)
    flat = jnp.sort(log_probability.reshape(len(log_probability), -1), axis=1)
    labeled = pixels.labeled.sum(axis=(1, 2)).astype(jnp.float32)
    kept = jnp.ceil(settings.ohem_kept * labeled).astype(jnp.int32)
    last = jnp.take_along_axis(flat, jnp.maximum(kept, 1)[:, None] - 1, axis=1)[:, 0]
    bound = jnp.maximum(last, jnp.log(settings.ohem_threshold))
    hard = pixels.labeled & (log_probability <= bound[:, None, None])
    values = jnp.where(hard, pixels.weights * _cross_entropies(pixels, settings), 0.0)
    return jnp.sum(values) / jnp.maximum(1.0, jnp.sum(hard.astype(values.dtype)))


def dice(pixels: Pixels, settings: TermSettings) -> Float[Array, ""]:
    """Computes the Dice loss (arXiv:1606.04797), averaged over the classes of every image."""
    del settings
    return _overlap_loss(pixels, 0.5, 0.5)


def tversky(pixels: Pixels, settings: TermSettings) -> Float[Array, ""]:
    """Computes the Tversky loss (arXiv:1706.05721), averaged over the classes of every image."""
    return _overlap_loss(pixels, *settings.tversky)


def _overlap_loss(pixels, false_positives, false_negatives):
    # optax has this loss, but looks at the values of probabilities, which a traced program cannot.
    probabilities = jnp.where(pixels.labeled[..., None], jnp.exp(pixels.log_probabilities), 0.0)
    both = jnp.sum(probabilities * pixels.targets, axis=(1, 2))
    more = jnp.sum(probabilities, axis=(1, 2)) - both
    missed = jnp.sum(pixels.targets, axis=(1, 2)) - both
    found = (both + 1) / (both + false_positives * more + false_negatives * missed + 1)
    return _mean_over_present(1 - found, pixels)


def _mean_over_present(losses: Float[Array, "b k"], pixels: Pixels) -> Float[Array, ""]:
    """Averages over the classes that occur in an image, then over the images that have some."""
    present = pixels.targets.max(axis=(1, 2))
    count = present.sum(axis=1)
    of_images = jnp.sum(present * losses, axis=1) / jnp.maximum(1.0, count)
    return of_images.sum() / jnp.maximum(1.0, jnp.minimum(1.0, count).sum())


def lovasz(pixels: Pixels, settings: TermSettings) -> Float[Array, ""]:
    """Computes the Lovász-Softmax loss (arXiv:1705.08790), over the classes of every image."""
    del settings
    b, *_, classes = pixels.targets.shape
    targets = pixels.targets.reshape(b, -1, classes)
    errors = jnp.abs(targets - jnp.exp(pixels.log_probabilities).reshape(targets.shape))
    errors = jnp.where(pixels.labeled.reshape(b, -1, 1), errors, 0.0)

    # One class at a time: a sort of all of them would take that much more memory.
    def of_class(pair):
        targets, errors = pair
        negative, targets = lax.sort((-errors, targets), dimension=1, num_keys=1)
        found = jnp.cumsum(targets, axis=1)
        total = found[:, -1:]
        union = total + jnp.cumsum(1 - targets, axis=1)
        jaccard = 1 - (total - found) / jnp.maximum(1.0, union)
        slopes = jnp.diff(jaccard, axis=1, prepend=0)
        return -jnp.sum(negative * lax.stop_gradient(slopes), axis=1)

    losses = lax.map(of_class, (jnp.moveaxis(targets, -1, 0), jnp.moveaxis(errors, -1, 0)))
    return _mean_over_present(losses.T, pixels)


Term = Callable[[Pixels, TermSettings], Float[Array, ""]]
TERMS: Mapping[str, Term] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "ohem": ohem,
    "tversky": tversky,
}


def check_terms(terms: Sequence[object]):
    """Checks `config.loss.terms`.

    Raises:
      ConfigError: for an unknown name, a name that is listed twice, or what is not a pair.
    """
    example = 'pairs are needed, such as (("cross_entropy", 1.0), ("dice", 0.5))'
    names = []
    for term in terms:
        if not isinstance(term, Sequence) or isinstance(term, str) or len(term) != 2:
            raise ConfigError(f"config.loss.terms: {term!r} is not a name with a weight; {example}")
        name, weight = term
        if name not in TERMS or name in names or not isinstance(weight, int | float):
            raise ConfigError(
                f"config.loss.terms: {term!r}: each of {', '.join(TERMS)} at most once; {example}"
            )
        names.append(name)


def check_settings(settings: Any):
    """Checks `config.loss` for heads that give logits of pixels.

    Raises:
      ConfigError: as `check_terms`, or for another number of weights in `tversky`.
    """
    check_terms(settings.terms)
    numbers = settings.tversky
    if not isinstance(numbers, Sequence) or len(numbers) != 2 or min(numbers) < 0:
        raise ConfigError(
            f"config.loss.tversky={numbers}: two numbers of 0 or more are needed, the weights of"
            " false positives and of false negatives, such as 0.3,0.7"
        )


def check_no_terms(settings: Any):
    """Checks `config.loss` for Mask2Former, which has a loss of its own.

    Raises:
      ConfigError: for a setting of the loss of pixels that is not the default.
    """
    for name, default in {"terms": (), "label_smoothing": 0.0, "ignored_in_mean": True}.items():
        if settings[name] != default:
            raise ConfigError(
                f"config.loss.{name} is for heads that give logits of pixels; Mask2Former has a"
                " loss of its own, which config.loss.class_weight changes"
            )


def sum_of_terms(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    terms: Sequence[tuple[str, float]],
    settings: TermSettings,
    *,
    class_weights: Sequence[float] = (),
    ignored_in_mean: bool = True,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Computes a weighted sum of losses.

    Args:
      logits: the logits of `k` classes, at any size.
      labels: the class of every pixel; 255 is ignored.
      terms: names in `TERMS`, with their weights.
      settings: what the terms depend on.
      class_weights: the weight of each class in the losses of pixels; empty: 1.
      ignored_in_mean: whether means of pixels count ignored pixels, as the reference does.

    Returns:
      The sum, and each term by its name, times its weight.
    """

    @jax.checkpoint
    def compute(logits):
        resized = resize_bilinear(logits.astype(jnp.float32), labels.shape[1:])
        labeled = labels != IGNORE
        classes = jnp.arange(resized.shape[-1], dtype=labels.dtype)
        targets = (labels[..., None] == classes[None, None, None]) & labeled[..., None]
        targets = targets.astype(jnp.float32)
        # A head may have more outputs than the dataset has classes.
        others = (1.0,) * (len(classes) - len(class_weights))
        weights = jnp.asarray((*class_weights, *others), jnp.float32)
        count = labeled.size if ignored_in_mean else jnp.maximum(1, jnp.sum(labeled))
        pixels = Pixels(
            jax.nn.log_softmax(resized),
            targets,
            labeled,
            jnp.einsum("bhwk,k->bhw", targets, weights),
            jnp.asarray(count, jnp.float32),
        )
        return {name: weight * TERMS[name](pixels, settings) for name, weight in terms}

    found = compute(logits)
    return sum(found.values(), jnp.zeros(())), found
