"""Assignment of queries to targets against scipy's, and the targets of a label."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxseg.losses.matcher import assign_targets, make_targets, matching_cost

ASSIGN = jax.jit(jax.vmap(assign_targets))


def check(cost, valid):
    """Valid targets get the queries that scipy gives them, and no query is given twice."""
    for found, cost_of_image, some in zip(ASSIGN(cost, valid), cost, valid, strict=True):
        queries, targets = linear_sum_assignment(cost_of_image[:, some])
        np.testing.assert_array_equal(np.asarray(found)[some], queries[np.argsort(targets)])
        assert len(set(found.tolist())) == len(some)


@pytest.mark.parametrize("queries", [6, 9])
def test_padding_anywhere_changes_no_assignment(queries):
    valid = np.array(list(itertools.product([False, True], repeat=6)))
    cost = np.random.default_rng(0).standard_normal((len(valid), queries, 6), np.float32)
    check(cost, valid)
    check(cost - 10, valid)
    check(cost + 10, valid)


def test_assignment_of_full_size_equals_scipys():
    rng = np.random.default_rng(1)
    valid = np.arange(60) < np.array([0, 1, 17, 60])[:, None]
    check(10 * rng.random((4, 200, 60), np.float32), valid)


def test_costs_of_the_padding_do_not_matter():
    rng = np.random.default_rng(2)
    cost = rng.standard_normal((1, 9, 6), np.float32)
    valid = np.array([[True, True, False, True, False, False]])
    other = np.where(valid[:, None], cost, np.float32(np.nan))
    np.testing.assert_array_equal(ASSIGN(cost, valid), ASSIGN(other, valid))


@pytest.mark.parametrize("logit", [1e4, -1e4, np.inf, -np.inf, np.nan])
def test_costs_are_finite_for_any_logits(logit):
    masks = np.eye(3, 8, dtype=np.float32)
    targets = np.arange(3, dtype=np.int32)
    class_logits = np.zeros((5, 4), np.float32)
    mask_logits = np.zeros((5, 8), np.float32)
    class_logits[2, 1], mask_logits[3] = logit, logit
    cost = matching_cost(class_logits, mask_logits, targets, masks)
    assert np.all(np.isfinite(cost))
    assert len(set(assign_targets(cost, np.ones(3, bool)).tolist())) == 3


def test_costs_that_cannot_be_known_end_in_some_assignment():
    unknown = jnp.full((5, 8), jnp.nan)
    cost = matching_cost(unknown[:, :4], unknown, jnp.arange(3), jnp.ones((3, 8)))
    assert len(set(assign_targets(cost, np.ones(3, bool)).tolist())) == 3


def test_targets_are_the_classes_present_in_ascending_order():
    labels = np.full((3, 4, 4), 255, np.int32)
    labels[0, :2], labels[0, 2] = 5, 1
    labels[1, 0] = 0
    targets, valid, dropped = make_targets(labels, 7, 4)
    assert targets.shape == valid.shape == (3, 4)
    found = [np.asarray(t)[v].tolist() for t, v in zip(targets, valid, strict=True)]
    assert found == [[1, 5], [0], []]
    assert dropped == 0


def test_classes_beyond_the_room_are_dropped_from_the_end_and_counted():
    labels = np.array([[[3, 1], [255, 6]], [[2, 2], [2, 2]]], np.int32)
    targets, valid, dropped = make_targets(labels, 7, 2)
    assert targets[0].tolist() == [1, 3]
    assert valid.tolist() == [[True, True], [True, False]]
    assert dropped == 1


def test_255_is_no_class_even_among_more_than_255():
    labels = np.array([[[255, 256]]], np.int32)
    targets, valid, _ = make_targets(labels, 300, 3)
    assert np.asarray(targets)[valid].tolist() == [256]
