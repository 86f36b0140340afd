"""The terms of a loss, against their definitions in NumPy in float64 and against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import ConfigError
from jaxseg.losses.cross_entropy import IGNORE, cross_entropy
from jaxseg.losses.terms import TERMS, TermSettings, check_terms, sum_of_terms
from support.reference_files import relative_error

CLASSES = 4
SETTINGS = TermSettings(
    label_smoothing=0.1, focal_gamma=2.0, ohem_threshold=0.3, ohem_kept=0.25, tversky=(0.3, 0.7)
)
WEIGHTS = (0.5, 1.0, 2.0, 4.0)


def batch(seed=0, hw=(6, 5)):
    """Logits at the size of the labels; the last image lacks a class, some pixels are ignored."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((3, *hw, CLASSES))
    labels = rng.integers(0, CLASSES, (3, *hw))
    labels[2][labels[2] == 1] = 0
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    return logits, labels


def value(name, logits, labels, **options):
    total, parts = sum_of_terms(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels), [(name, 1.0)], SETTINGS, **options
    )
    assert list(parts) == [name]
    assert float(parts[name]) == float(total)
    return float(total)


def probabilities(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def pixelwise(logits, labels, of_pixel, weights):
    """The sum of a loss over the labeled pixels, times the weights of their classes."""
    p = probabilities(logits)
    return sum(
        weights[labels[place]] * of_pixel(p[place], labels[place])
        for place in np.ndindex(labels.shape)
        if labels[place] != IGNORE
    )


def of_smoothed(p, k):
    target = np.full(CLASSES, SETTINGS.label_smoothing / CLASSES)
    target[k] += 1 - SETTINGS.label_smoothing
    return -(target * np.log(p)).sum()


def of_focal(p, k):
    return -((1 - p[k]) ** SETTINGS.focal_gamma) * np.log(p[k])


@pytest.mark.parametrize("weights", [(1.0,) * CLASSES, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize("ignored_in_mean", [True, False])
@pytest.mark.parametrize(
    ("name", "of_pixel"), [("cross_entropy", of_smoothed), ("focal", of_focal)]
)
def test_means_over_pixels(name, of_pixel, ignored_in_mean, weights):
    logits, labels = batch()
    count = labels.size if ignored_in_mean else (labels != IGNORE).sum()
    expected = pixelwise(logits, labels, of_pixel, weights) / count
    options = {"class_weights": weights, "ignored_in_mean": ignored_in_mean}
    assert value(name, logits, labels, **options) == pytest.approx(expected, rel=1e-5)


def test_outputs_beyond_the_classes_have_the_weight_one():
    logits, labels = batch()
    short = value("cross_entropy", logits, labels, class_weights=WEIGHTS[:2])
    assert short == value("cross_entropy", logits, labels, class_weights=(*WEIGHTS[:2], 1.0, 1.0))


@pytest.mark.parametrize("easy", [0.0, 9.0], ids=["some are hard", "all are easy"])
def test_ohem_is_the_mean_over_hard_pixels(easy):
    logits, labels = batch()
    logits += easy * (np.arange(CLASSES) == labels[..., None])
    p = probabilities(logits)
    hard = []
    for image in range(len(labels)):
        places = np.argwhere(labels[image] != IGNORE)
        found = [(p[image, y, x, labels[image, y, x]], (image, y, x)) for y, x in places]
        found.sort()
        kept = int(np.ceil(SETTINGS.ohem_kept * len(found)))
        hard += [
            place for i, (q, place) in enumerate(found) if i < kept or q < SETTINGS.ohem_threshold
        ]
    losses = [of_smoothed(p[place], labels[place]) for place in hard]
    assert value("ohem", logits, labels) == pytest.approx(np.mean(losses), rel=1e-5)


def over_classes(logits, labels, of_class):
    """The mean over the classes of every image, then over the images."""
    p = probabilities(logits)
    means = []
    for image, label in enumerate(labels):
        labeled = label != IGNORE
        of_image = [
            of_class(p[image][labeled][:, k], label[labeled] == k)
            for k in range(CLASSES)
            if (label == k).any()
        ]
        means += [np.mean(of_image)] if of_image else []
    return np.mean(means)


def overlap_of(false_positives, false_negatives):
    def of_class(p, y):
        both = (p * y).sum()
        rest = false_positives * (p.sum() - both) + false_negatives * (y.sum() - both)
        return 1 - (both + 1) / (both + rest + 1)

    return of_class


def lovasz_extension(p, y):
    """By its definition: the loss of a set of mistakes, integrated over thresholds of the error."""
    errors = np.abs(y - p)
    order = np.argsort(-errors)
    total, previous = 0.0, 0.0
    for i in range(len(order)):
        mistakes = np.zeros(len(y), bool)
        mistakes[order[: i + 1]] = True
        predicted = y ^ mistakes
        jaccard = 1 - (predicted & y).sum() / (predicted | y).sum()
        total += errors[order[i]] * (jaccard - previous)
        previous = jaccard
    return total


@pytest.mark.parametrize(
    ("name", "of_class"),
    [
        ("dice", overlap_of(0.5, 0.5)),
        ("tversky", overlap_of(*SETTINGS.tversky)),
        ("lovasz", lovasz_extension),
    ],
)
def test_means_over_classes(name, of_class):
    logits, labels = batch()
    expected = over_classes(logits, labels, of_class)
    assert value(name, logits, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_differences(name):
    """In float64, where a step of 1e-6 leaves nine digits; no pixel is at a kink of these terms."""
    logits, labels = batch()
    direction = np.random.default_rng(1).standard_normal(logits.shape)
    with jax.enable_x64(True):

        def loss(step):
            from jaxseg.losses import terms

            moved = jnp.asarray(logits) + step * direction
            labeled = jnp.asarray(labels != IGNORE)
            targets = jnp.asarray((labels[..., None] == np.arange(CLASSES)).astype(float))
            weights = jnp.einsum("bhwk,k->bhw", targets, np.array(WEIGHTS))
            pixels = terms.Pixels(
                jax.nn.log_softmax(moved), targets, labeled, weights, jnp.asarray(90.0)
            )
            return TERMS[name](pixels, SETTINGS)

        slope = float(jax.grad(loss)(0.0))
        difference = float(loss(1e-6) - loss(-1e-6)) / 2e-6
    assert slope == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_ignored_pixels_have_no_gradient_and_nothing_else_is_not_finite(name):
    logits, labels = batch()
    for label in (labels, np.full_like(labels, IGNORE)):
        gradient = jax.grad(
            lambda x, label=label: sum_of_terms(x, jnp.asarray(label), [(name, 1.0)], SETTINGS)[0]
        )(jnp.asarray(logits, jnp.float32))
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[label == IGNORE].any()


def test_certain_logits_have_finite_gradients():
    logits, labels = batch()
    certain = jnp.asarray(1e4 * logits, jnp.float32)
    terms = [(name, 1.0) for name in TERMS]
    gradient = jax.grad(lambda x: sum_of_terms(x, jnp.asarray(labels), terms, SETTINGS)[0])(certain)
    assert np.isfinite(gradient).all()


def test_logits_of_another_size_are_resized_as_for_the_plain_cross_entropy():
    logits, _ = batch()
    labels = np.random.default_rng(2).integers(0, CLASSES, (3, 24, 21))
    labels[0, :9] = IGNORE
    plain = TermSettings(0.0, 2.0, 0.7, 0.1, (0.5, 0.5))
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)

    def ours(x):
        return sum_of_terms(x, labels, [("cross_entropy", 1.0)], plain)[0]

    expected, slope = jax.value_and_grad(lambda x: cross_entropy(x, labels))(logits)
    found, own = jax.value_and_grad(ours)(logits)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)  # of sums in another order
    assert relative_error(own, slope) < 1e-5


@pytest.mark.parametrize(
    "terms",
    [
        ("dice",),
        ("dice", 1.0),
        (("jaccard", 1.0),),
        (("dice", 1.0), ("dice", 2.0)),
        (("dice", "1"),),
    ],
)
def test_terms_that_are_no_pairs_of_known_names_are_refused(terms):
    with pytest.raises(ConfigError, match=r"config\.loss\.terms: .* pairs are needed, such as"):
        check_terms(terms)


def test_a_sum_is_that_of_its_terms():
    logits, labels = (jnp.asarray(x) for x in batch())
    logits = logits.astype(jnp.float32)
    total, parts = sum_of_terms(logits, labels, [("dice", 0.5), ("focal", 2.0)], SETTINGS)
    assert float(parts["dice"]) == pytest.approx(0.5 * value("dice", logits, labels))
    assert float(parts["focal"]) == pytest.approx(2 * value("focal", logits, labels))
    assert float(total) == pytest.approx(float(parts["dice"] + parts["focal"]))
