"""Losses and matching against the recorded ones of Mask2Former, and where those are silent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh
from jaxseg.losses import mask2former
from jaxseg.losses.cross_entropy import IGNORE, cross_entropy
from jaxseg.losses.matcher import (
    CLASS_WEIGHT,
    DICE_WEIGHT,
    MASK_WEIGHT,
    assign_targets,
    make_targets,
)
from jaxseg.losses.point_sampling import point_sample
from support.reference_files import Recording, recordings, relative_error

# Float32 rounding of sums in another order.
VALUES, GRADIENTS = 1e-5, 1e-4
EACH_MASK_AT_ITS_POINTS = jax.vmap(lambda mask, at: point_sample(mask[None], at)[0])


def check_cross_entropy(recording):
    weight = float(recording["loss_weight"])
    logits = np.moveaxis(recording["inputs/logits"], 1, -1)
    labels = recording["inputs/label"][:, 0].astype(np.int32)
    loss, gradient = jax.value_and_grad(lambda x: weight * cross_entropy(x, labels))(logits)
    assert relative_error(loss, recording["outputs/loss"]) < VALUES
    assert relative_error(loss / weight, recording["outputs/mean_over_all_pixels"]) < VALUES
    expected = recording["grads/inputs/logits"]
    assert relative_error(jnp.moveaxis(gradient, -1, 1), expected) < GRADIENTS
    ignored = np.full_like(labels, IGNORE)
    assert cross_entropy(logits, ignored) == recording["outputs/loss_all_ignored"]


def check_elementary(recording):
    prediction, target = recording["inputs/pred"], recording["inputs/target"]
    num_masks = float(recording["avg_factor_masks"])

    def mask_and_dice(logits):
        mask = MASK_WEIGHT * jnp.sum(mask2former.mask_loss(logits, target))
        dice = DICE_WEIGHT * jnp.sum(mask2former.dice_loss(logits, target))
        return (mask + dice) / num_masks, (mask / num_masks, dice / num_masks)

    gradient, (mask, dice) = jax.grad(mask_and_dice, has_aux=True)(prediction)
    assert relative_error(mask, recording["outputs/bce"]) < VALUES
    assert relative_error(dice, recording["outputs/dice"]) < VALUES
    assert relative_error(gradient, recording["grads/inputs/pred_sum"]) < GRADIENTS

    classes = recording["cls/inputs/labels"].astype(np.int32)

    def of_class(logits):
        total, weights = mask2former.class_loss(logits, classes)
        return CLASS_WEIGHT * total / weights

    loss, gradient = jax.value_and_grad(of_class)(recording["cls/inputs/logits"])
    assert relative_error(loss, recording["cls/outputs/loss"]) < VALUES
    assert relative_error(gradient, recording["cls/grads/logits"]) < GRADIENTS


def check_uncertain_points(recording):
    masks, num_points = recording["inputs/mask"][:, 0], int(recording["num_points"])
    candidates, fresh = recording["rand/0"], recording["rand/1"]
    uncertain = num_points - fresh.shape[1]
    found = mask2former.comparison_points(masks, candidates, fresh, uncertain)
    np.testing.assert_array_equal(found, recording["outputs/points"])
    values = EACH_MASK_AT_ITS_POINTS(masks, found)
    assert relative_error(values, recording["outputs/values"]) < VALUES


def check_loss(recording):
    """The whole loss, at the recorded random points."""
    labels = recording["inputs/label"].astype(np.int32)
    predictions = len(recording.group("inputs/cls"))
    class_logits, mask_logits = (
        np.stack([recording[f"inputs/{kind}{p}"] for p in range(predictions)])
        for kind in ("cls", "mask")
    )
    targets = make_targets(labels, class_logits.shape[-1] - 1, max_targets=5)
    assert targets[2] == 0  # dropped
    assigned, compared = [], []
    for p in range(predictions):
        for_matching, candidates, fresh = recorded_draws(recording, p, len(labels))
        cost, queries = match(class_logits[p], mask_logits[p], labels, targets, for_matching)
        check_assignment(recording, p, targets, cost, queries)
        candidates, fresh = (by_target(x, queries, targets[1]) for x in (candidates, fresh))
        chosen = choose(mask_logits[p], queries, candidates, fresh)
        if f"points/{p}" in recording:
            expected = by_target(recording[f"points/{p}"], queries, targets[1])
            np.testing.assert_array_equal(chosen[targets[1]], expected[targets[1]])
        assigned.append(queries)
        compared.append(chosen)

    gradients, values = compare(
        class_logits, mask_logits, labels, targets, np.stack(assigned), np.stack(compared)
    )
    for p in range(predictions):
        prefix = "outputs/" if p == predictions - 1 else f"outputs/d{p}."
        for name, value in values.items():
            expected = recording[prefix + name].reshape(())
            assert relative_error(value[p], expected) < VALUES, prefix + name
        for name, gradient in zip(("cls", "mask"), gradients, strict=True):
            expected = recording[f"grads/inputs/{name}{p}"]
            assert relative_error(gradient[p], expected) < GRADIENTS, (name, p)
    if "outputs/total" in recording:
        whole = sum(np.sum(v) for v in values.values())
        assert relative_error(whole, recording["outputs/total"].reshape(())) < VALUES


@jax.jit
def match(class_logits, mask_logits, labels, targets, at):
    """Costs and assigned queries of one prediction, compared at given points."""
    classes, valid, _ = targets
    cost = jax.vmap(mask2former.image_cost)(class_logits, mask_logits, labels, classes, at)
    return cost, jax.vmap(assign_targets)(cost, valid)


@jax.jit
def choose(mask_logits, assigned, candidates, fresh):
    """The points of one prediction: three quarters uncertain ones, a quarter fresh."""
    masks = jax.vmap(lambda masks, queries: masks[queries])(mask_logits, assigned)
    at = partial(mask2former.comparison_points, uncertain=3 * fresh.shape[2])
    return jax.vmap(at)(masks, candidates, fresh)


@jax.jit
def compare(class_logits, mask_logits, labels, targets, assigned, compared):
    """Gradients of the total for both logits, and the losses of all predictions."""
    classes, valid, _ = targets
    of_images = jax.vmap(mask2former.image_losses)
    of_all = jax.vmap(of_images, in_axes=(0, 0, None, None, None, 0, 0))

    def total(logits):
        sums = of_all(*logits, labels, classes, valid, assigned, compared)
        values = mask2former.normalized(*sums, valid)
        return sum(jnp.sum(v) for v in values.values()), values

    return jax.grad(total, has_aux=True)((class_logits, mask_logits))


def recorded_draws(recording, prediction, images):
    """The points for matching [b, n, 2]; candidates and fresh ones of all matched queries."""
    if f"rand/{prediction}/match/0" in recording:
        names = [f"{prediction}/match/{image}" for image in range(images)]
        names += [f"{prediction}/oversample", f"{prediction}/random"]
    else:
        names = range(images + 2)  # one prediction, in the order of drawing
    arrays = [recording[f"rand/{n}"] for n in names if f"rand/{n}" in recording]
    for_matching = np.concatenate(arrays[:images])
    # Without any target, nothing more was drawn.
    n = for_matching.shape[1]
    nothing = [np.zeros((0, count, 2), np.float32) for count in (3 * n, n // 4)]
    return for_matching, *(arrays[images:] or nothing)


def by_target(recorded, assigned, valid):
    """Draws in the order of the reference (image, query) as draws by target, zeros for padding."""
    result = np.zeros((*assigned.shape, *recorded.shape[1:]), recorded.dtype)
    image, target = np.nonzero(valid)
    order = np.lexsort((np.asarray(assigned)[image, target], image))
    result[image[order], target[order]] = recorded
    return result


def check_assignment(recording, prediction, targets, cost, assigned):
    classes, valid, _ = targets
    for image, found in enumerate(np.asarray(assigned)):
        recorded = recording.group(f"assign/{prediction}/{image}/")
        if not recorded:
            continue
        some = np.asarray(valid[image])
        np.testing.assert_array_equal(classes[image][some], recording[f"gt/{image}/labels"])
        expected = sum(recorded[f"{kind}_cost"] for kind in ("cls", "mask", "dice"))
        assert relative_error(cost[image][:, some], expected) < VALUES
        target_of_query = np.zeros_like(recorded["gt_inds"])
        target_of_query[found[some]] = 1 + np.arange(some.sum())
        np.testing.assert_array_equal(target_of_query, recorded["gt_inds"])


CHECKS = {
    "cross_entropy": check_cross_entropy,
    "mask2former_elementary": check_elementary,
    "mask2former_loss": check_loss,
    "uncertain_points": check_uncertain_points,
}


@pytest.mark.reference
@pytest.mark.parametrize("path", recordings("vit_adapter/losses"), ids=lambda path: path.stem)
def test_loss_equals_the_reference(path):
    leading = max((name for name in CHECKS if path.stem.startswith(name)), key=len, default=None)
    assert leading, f"{path.name}: nothing here knows how to check it"
    CHECKS[leading](Recording(path))


def random_case(predictions=3, images=8, queries=6, classes=4, num_points=32):
    """Class and mask logits, labels of any class and of 255, and the loss as a function of them."""
    rng = np.random.default_rng(0)
    class_logits = rng.standard_normal((predictions, images, queries, classes + 1), np.float32)
    mask_logits = rng.standard_normal((predictions, images, queries, 6, 8), np.float32)
    labels = rng.integers(0, classes, (images, 4, 4)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.3] = 255
    labels = labels.repeat(6, axis=1).repeat(8, axis=2)
    # The first queries know a little of their classes: no two assignments cost nearly the same.
    known = np.arange(classes)
    class_logits[:, :, known, known] += 5
    mask_logits[:, :, known] += 3 * (labels[:, None, ::4, ::4] == known[:, None, None])
    loss = partial(mask2former.mask2former_loss, num_points=num_points, max_targets=classes)
    return class_logits, mask_logits, labels, loss


def test_loss_at_drawn_points_is_that_at_other_points():
    """With many points it hardly matters which: 2% for 4096 points."""
    class_logits, mask_logits, labels, loss = random_case(num_points=4096)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    found, logs = gradient(class_logits, mask_logits, labels, jax.random.key(0))

    targets = make_targets(labels, 4, max_targets=4)
    draw = partial(np.random.default_rng(1).random, dtype=np.float32)
    assigned, compared = [], []
    for of_class, of_mask in zip(class_logits, mask_logits, strict=True):
        assigned.append(match(of_class, of_mask, labels, targets, draw((8, 4096, 2)))[1])
        candidates, fresh = draw((8, 4, 3 * 4096, 2)), draw((8, 4, 1024, 2))
        compared.append(choose(of_mask, assigned[-1], candidates, fresh))
    expected, values = compare(
        class_logits, mask_logits, labels, targets, np.stack(assigned), np.stack(compared)
    )
    assert logs["targets_dropped"] == 0
    for name, value in values.items():
        assert relative_error(logs[name], value[-1]) < 0.02, name
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) < 0.1 * np.linalg.norm(other)


def test_loss_is_the_sum_over_predictions():
    class_logits, mask_logits, labels, loss = random_case(num_points=4096)
    loss = jax.jit(loss)
    total, _ = loss(class_logits, mask_logits, labels, jax.random.key(0))
    singly = sum(
        loss(class_logits[p : p + 1], mask_logits[p : p + 1], labels, jax.random.key(p))[0]
        for p in range(3)
    )
    assert relative_error(total, singly) < 0.02


def test_order_of_the_queries_does_not_matter():
    class_logits, mask_logits, labels, loss = random_case()
    order = np.random.default_rng(1).permutation(6)
    loss, key = jax.jit(loss), jax.random.key(0)
    total, _ = loss(class_logits, mask_logits, labels, key)
    shuffled, _ = loss(class_logits[:, :, order], mask_logits[:, :, order], labels, key)
    assert relative_error(shuffled, total) < VALUES


def test_loss_does_not_depend_on_how_the_batch_is_split():
    class_logits, mask_logits, labels, loss = random_case()
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (whole, _), whole_gradients = jax.jit(gradient)(
        class_logits, mask_logits, labels, jax.random.key(1)
    )
    mesh = make_mesh({"data": 4, "fsdp": 2})
    by_image, by_prediction = (
        NamedSharding(mesh, spec) for spec in (BATCH_SPEC, P(None, *BATCH_SPEC))
    )
    with jax.set_mesh(mesh):
        (split, _), split_gradients = jax.jit(gradient)(
            jax.device_put(class_logits, by_prediction),
            jax.device_put(mask_logits, by_prediction),
            jax.device_put(labels, by_image),
            jax.random.key(1),
        )
    assert relative_error(split, whole) < VALUES
    for found, expected in zip(split_gradients, whole_gradients, strict=True):
        assert relative_error(found, expected) < GRADIENTS


@pytest.mark.parametrize("size", [1e4, 1e-30])
@pytest.mark.parametrize("ignored", [0, 4, 8], ids=lambda count: f"{count}_of_8_images_empty")
def test_loss_and_gradient_are_finite(size, ignored):
    class_logits, mask_logits, labels, loss = random_case()
    labels[:ignored] = 255
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, logs), gradients = gradient(
        size * np.sign(class_logits), size * np.sign(mask_logits), labels, jax.random.key(0)
    )
    for array in (total, *logs.values(), *gradients):
        assert np.all(np.isfinite(array))
    if ignored == 8:
        assert logs["loss_mask"] == logs["loss_dice"] == 0
        assert not np.any(gradients[1])


def test_logits_that_are_no_numbers_show_in_the_loss():
    class_logits, mask_logits, labels, loss = random_case()
    class_logits[1, 2] = np.nan
    mask_logits[2, 3] = np.nan
    total, logs = jax.jit(loss)(class_logits, mask_logits, labels, jax.random.key(0))
    assert np.isnan(total)
    assert np.isnan(logs["loss_mask"])


def test_targets_that_do_not_fit_are_counted():
    class_logits, mask_logits, labels, _ = random_case()
    present = sum(len(np.setdiff1d(label, [255])) for label in labels)
    loss = jax.jit(partial(mask2former.mask2former_loss, num_points=8, max_targets=1))
    _, logs = loss(class_logits, mask_logits, labels, jax.random.key(0))
    assert logs["targets_dropped"] == present - 8


def test_more_targets_than_queries_are_refused():
    class_logits, mask_logits, labels, _ = random_case()
    with pytest.raises(ValueError, match="7 targets for 6 queries"):
        mask2former.mask2former_loss(
            class_logits, mask_logits, labels, jax.random.key(0), max_targets=7
        )


def test_class_weights_are_those_of_a_weighted_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(5, 4))  # the last output is "no object"
    classes = np.array([0, 1, 2, 3, 3], np.int32)
    total, weights = mask2former.class_loss(logits.astype(np.float32), classes, (2.0, 0.5))
    of_queries = np.array([2.0, 0.5, 1.0, 0.1, 0.1])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert total == pytest.approx(-np.sum(of_queries * log_p[np.arange(5), classes]), rel=1e-5)
    assert weights == pytest.approx(3.7)
