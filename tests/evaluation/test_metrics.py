"""The scores are those of the reference, exactly, whatever lies outside the classes."""

import json
import warnings

import numpy as np
import pytest

from jaxseg.data.datasets import get_dataset
from jaxseg.evaluation import metrics
from support.reference_files import REFERENCE

HERE = (
    "iou_",
    "city_evaluate",
    "ade_evaluate",
)  # beginnings of the names of the recorded cases about metrics
LATER = ("city_convert", "city_format", "net", "slide_", "tp_", "whole")


def read_cases():
    path = REFERENCE / "protocol" / "eval.npz"
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        cases = {key.split("/")[0]: {} for key in file.files if key != "__index__"}
        cases |= {entry["case"]: {} for entry in json.loads(str(file["__index__"]))}
        for case, fields in cases.items():
            if case.startswith(HERE):
                prefix = f"{case}/"
                fields |= {k.removeprefix(prefix): file[k] for k in file if k.startswith(prefix)}
    return cases


CASES = read_cases()


def recorded(*fields):
    """The cases about metrics whose fields include all of these, and no others are left over."""
    return [case for case, found in CASES.items() if found and set(fields) <= set(found)]


def label_table(options):
    """The reference's options for labels as one table raw -> train, which is what datasets apply.

    `label_map` is applied in place, one entry after the other, so that entries can chain;
    `reduce_zero_label` comes after it: 0 becomes ignored and everything else moves down by one.
    """
    options = dict(options)
    table = np.arange(256)
    for old, new in options.pop("label_map", {}).items():
        table[table == int(old)] = new
    if options.pop("reduce_zero_label", False):
        table = np.where((table == 0) | (table == 255), 255, table - 1)
    assert not options, f"options of the reference this test does not know: {options}"
    return table


def count(prediction, label, num_classes):
    return np.asarray(metrics.confusion_matrix(prediction, label, num_classes), np.int64)


@pytest.mark.reference
def test_every_recorded_case_is_tested_here_or_known_to_belong_elsewhere():
    assert CASES, f"no cases in {REFERENCE / 'protocol' / 'eval.npz'}"
    unknown = [case for case in CASES if not case.startswith(HERE + LATER)]
    assert not unknown
    tested = {*recorded("pred", "opts"), *recorded("pred_0"), *recorded("counts", "exact")}
    tested |= set(recorded("result"))
    assert tested == {case for case in CASES if case.startswith(HERE)}


@pytest.mark.reference
@pytest.mark.parametrize("case", recorded("pred", "opts"))
def test_scores_of_one_image_equal_the_recorded_ones(case):
    fields = CASES[case]
    num_classes = int(fields["num_classes"])
    label = label_table(json.loads(str(fields["opts"])))[fields["label"]]
    confusion = count(fields["pred"], label, num_classes)

    intersection = np.diag(confusion)[:-1]
    labeled, predicted = confusion[:-1].sum(1), confusion[:, :-1].sum(0)
    np.testing.assert_array_equal(intersection, fields["intersect"])
    np.testing.assert_array_equal(labeled, fields["label_area"])
    np.testing.assert_array_equal(predicted, fields["pred_area"])
    np.testing.assert_array_equal(labeled + predicted - intersection, fields["union"])

    result = metrics.compute_scores(confusion)
    assert_scores(result, fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, where no class is defined
        np.testing.assert_allclose(result.mdice, fields["mDice"], rtol=1e-6)
        np.testing.assert_allclose(result.mfscore, fields["mFscore"], rtol=1e-6)


@pytest.mark.reference
@pytest.mark.parametrize("case", recorded("pred_0"))
def test_scores_of_a_dataset_equal_the_recorded_ones(case):
    fields = CASES[case]
    images = sorted(name.removeprefix("pred_") for name in fields if name.startswith("pred_"))
    confusion = sum(
        count(fields[f"pred_{i}"], fields[f"label_{i}"], len(fields["IoU"])) for i in images
    )
    result = metrics.compute_scores(confusion)
    assert_scores(result, {**fields, "mIoU": fields["mIoU_raw"]})
    for name, value in result.reported().items():
        if f"{name}_reported" in fields:
            assert value == pytest.approx(float(fields[f"{name}_reported"]), abs=1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("case", recorded("result"))
def test_reported_numbers_equal_the_recorded_ones(case):
    fields = CASES[case]
    expected = json.loads(str(fields["result"]))
    expected = {name: np.nan if value is None else value for name, value in expected.items()}
    ious = [value for name, value in expected.items() if name.startswith("IoU.")]
    accs = [value for name, value in expected.items() if name.startswith("Acc.")]
    label = fields["label"]
    if case.startswith("ade"):  # recorded as it lies on disk
        label = get_dataset("ade20k").label_formats[0].train_ids[label]
    result = metrics.compute_scores(count(fields["pred"], label, len(ious)))
    for name, value in result.reported().items():
        if name in expected:
            assert value == pytest.approx(expected[name], abs=1e-9)
    # Every class is rounded likewise, but in float32.
    np.testing.assert_allclose(np.round(100 * result.iou, 2) / 100, ious, atol=1e-7)
    np.testing.assert_allclose(np.round(100 * result.acc, 2) / 100, accs, atol=1e-7)


@pytest.mark.reference
@pytest.mark.parametrize("case", recorded("counts", "exact"))
def test_int64_keeps_the_pixels_that_the_reference_loses(case):
    counts, exact = CASES[case]["counts"], int(CASES[case]["exact"])
    images = np.zeros((len(counts), 2, 2), np.int32)
    images[:, 0, 0] = counts
    assert images.sum(axis=0, dtype=np.int64)[0, 0] == exact
    assert int(CASES[case]["float32_sum"][0]) != exact


def assert_scores(result, fields):
    """The reference divides in float32, hence 1e-6."""
    np.testing.assert_allclose(result.iou, fields["IoU"], rtol=1e-6)
    np.testing.assert_allclose(result.acc, fields["Acc"], rtol=1e-6)
    np.testing.assert_allclose(result.aacc, fields["aAcc"], rtol=1e-6)
    np.testing.assert_allclose(result.miou, fields["mIoU"], rtol=1e-6)
    if "mAcc" in fields:
        np.testing.assert_allclose(result.macc, fields["mAcc"], rtol=1e-6)


def test_values_outside_the_classes_fill_the_last_row_and_column():
    label = np.array([0, 0, 1, 1, 7, 7, 255, 255], np.uint8)
    prediction = np.array([0, 9, 1, 255, 1, 9, 0, 9], np.uint8)
    expected = [[1, 0, 1], [0, 1, 1], [0, 1, 1]]
    np.testing.assert_array_equal(metrics.confusion_matrix(prediction, label, 2), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_any_integer_type_counts_alike(dtype):
    label = np.array([[0, 1, 2], [2, 1, 5]], dtype)
    prediction = np.array([[0, 2, 2], [2, 1, 1]], dtype)
    expected = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(metrics.confusion_matrix(prediction, label, 3), expected)


def test_negative_values_are_outside_too():
    label = np.array([-1, 0], np.int32)
    prediction = np.array([0, -1], np.int32)
    np.testing.assert_array_equal(metrics.confusion_matrix(prediction, label, 1), [[0, 1], [1, 0]])


def test_another_ignored_value_may_be_a_class_number():
    label = np.array([0, 1, 255], np.int32)
    prediction = np.array([0, 1, 1], np.int32)
    confusion = metrics.confusion_matrix(prediction, label, 2, ignore_index=0)
    np.testing.assert_array_equal(confusion, [[0, 0, 0], [0, 1, 0], [0, 1, 0]])


def test_arrays_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        metrics.confusion_matrix(np.zeros((2, 3), np.int32), np.zeros((3, 2), np.int32), 2)


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="square"):
        metrics.compute_scores(np.zeros((2, 3), np.int64))


def test_a_class_that_is_only_predicted_has_iou_zero_and_no_accuracy():
    confusion = [[8, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    result = metrics.compute_scores(np.array(confusion))
    np.testing.assert_array_equal(result.iou, [0.8, 0, np.nan])
    np.testing.assert_array_equal(result.acc, [0.8, np.nan, np.nan])
    assert (result.miou, result.iou_classes) == (0.4, 2)
    assert (result.macc, result.acc_classes) == (0.8, 1)
    np.testing.assert_array_equal(result.pixels, [10, 0, 0])


def test_nothing_labeled_gives_nan_and_no_warning():
    result = metrics.compute_scores(np.zeros((3, 3), np.int64))
    assert result.iou_classes == result.acc_classes == 0
    assert all(np.isnan(value) for value in result.reported().values())
