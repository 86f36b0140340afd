"""Charts show what the numbers say, and say what is missing."""

import numpy as np

from jaxseg.evaluation import charts

CLASSES = ("road", "car", "bus")
FULL, PAPER, FAINT = (np.array(color) for color in (charts.FULL, charts.PAPER, charts.FAINT))


def is_in(picture, color):
    return (picture == color).all(axis=-1)


def test_a_perfect_confusion_is_a_diagonal():
    confusion = np.diag([5, 6, 7, 0])
    picture = charts.confusion_chart(confusion, CLASSES)
    rows, columns = np.nonzero(is_in(picture, FULL))
    side = picture.shape[0]
    rows, columns = rows - rows.min(), columns - columns.min()
    assert abs(rows - columns).max() < 36  # one square's side
    assert 3 * 30 <= rows.max() < side


def test_rows_of_absent_classes_are_gray_and_values_outside_have_a_place_where_there_are_any():
    known = charts.confusion_chart(np.diag([5, 6, 0, 0]), CLASSES)
    assert is_in(known, FAINT).sum() > 3 * 30 * 30
    outside = np.diag([5, 6, 7, 0])
    # Single pixels of letters may have the same gray.
    assert is_in(charts.confusion_chart(outside, CLASSES), FAINT).sum() < 30 * 30
    outside[0, -1] = 1
    assert charts.confusion_chart(outside, CLASSES).shape[0] > known.shape[0]


def test_a_bar_is_as_long_as_its_value():
    picture = charts.class_bars(np.array([1.0, 0.5, np.nan]), CLASSES)
    filled = is_in(picture, FULL).sum(axis=1)
    assert filled.max() == 501
    assert sorted({*filled.tolist()}) == [0, 251, 501]


def test_a_hundred_classes_have_room_for_their_names():
    names = [f"class number {k}" for k in range(150)]
    picture = charts.confusion_chart(np.eye(151, dtype=np.int64), names)
    assert picture.shape[0] > 150 * 10
