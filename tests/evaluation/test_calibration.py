"""The expected calibration error against its definition and on known cases."""

import numpy as np
import pytest

from jaxseg.evaluation.calibration import BINS, calibration_counts, expected_calibration_error
from jaxseg.evaluation.charts import reliability_diagram


def draws(correct_with, shape=(200, 300)):
    """Probabilities of two classes, and labels that are right with a function of the higher one."""
    rng = np.random.default_rng(0)
    highest = rng.uniform(0.5, 1, shape).astype(np.float32)
    predicted = rng.integers(0, 2, shape)
    of_predicted = np.arange(2) == predicted[..., None]
    probabilities = np.where(of_predicted, highest[..., None], 1 - highest[..., None])
    label = np.where(rng.random(shape) < correct_with(highest), predicted, 1 - predicted)
    return probabilities, label


def test_error_is_that_of_the_definition():
    probabilities, label = draws(lambda p: p**2)
    label[:20] = 255
    found = expected_calibration_error(calibration_counts(probabilities, label))
    kept, highest = label != 255, probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == label
    expected = 0.0
    for k in range(BINS):
        inside = kept & (highest > k / BINS) & (highest <= (k + 1) / BINS)
        if inside.any():
            distance = abs(right[inside].mean() - highest[inside].astype(float).mean())
            expected += inside.sum() / kept.sum() * distance
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_calibrated_model_has_hardly_an_error_and_one_that_is_too_sure_has():
    calibrated, sure = (
        expected_calibration_error(calibration_counts(*draws(correct_with)))
        for correct_with in (lambda p: p, lambda p: np.full_like(p, 0.5))
    )
    assert calibrated < 0.01
    assert sure == pytest.approx(0.25, abs=0.01)


def test_images_are_summed_and_certain_pixels_are_in_the_last_bin():
    probabilities = np.float32([[[1, 0], [0.5, 0.5]]])
    counts = calibration_counts(probabilities, np.array([[0, 1]]))
    assert counts[0, BINS - 1] == counts[2, BINS - 1] == 1
    assert counts[0].sum() == 2
    assert np.isnan(expected_calibration_error(np.zeros((3, BINS))))
    assert expected_calibration_error(counts + counts) == expected_calibration_error(counts)


def test_the_diagram_shows_the_bins():
    chart = reliability_diagram(calibration_counts(*draws(lambda p: p)))
    assert chart.dtype == np.uint8
    # Accuracy is drawn in the right half alone, where probabilities are.
    blue = (chart == (31, 78, 140)).all(axis=-1).sum(axis=0)
    assert blue[:280].sum() == 0
    assert blue[310:].sum() > 10_000
