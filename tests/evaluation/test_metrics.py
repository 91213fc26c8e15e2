"""Counts of pixels, IoU of each image and AUROC, by hand and against NumPy on decoded masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chexseg.data import rle
from chexseg.errors import DataError
from chexseg.evaluation import metrics

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


def entry(*stack, tasks="abc"):
    return dict(zip(tasks, rle.encode(np.array(stack)), strict=False))


@settings(max_examples=60)
@given(arrays.arrays(bool, st.tuples(st.just(2), st.just(3), st.integers(1, 12), st.integers(1, 12))))
def test_overlap_equals_numpy_on_decoded_masks(pair):
    ours, true = pair
    found = metrics.overlap({"x": entry(*ours)}, {"x": entry(*true)}, "abc", ["x"])
    np.testing.assert_array_equal(found.intersection[0], (ours & true).sum((1, 2)))
    np.testing.assert_array_equal(found.union[0], (ours | true).sum((1, 2)))
    np.testing.assert_array_equal(found.predicted[0], ours.sum((1, 2)))
    np.testing.assert_array_equal(found.truth[0], true.sum((1, 2)))
    assert found.notes == []


def test_per_image_iou_by_hand():
    ones, none, left = np.ones((1, 4)), np.zeros((1, 4)), np.array([[1, 1, 0, 0]])
    truth = {"x": entry(ones, none, none), "y": entry(left, left, none)}
    ours = {"x": entry(left, left, none), "y": entry(left, none, none)}
    found = metrics.overlap(ours, truth, "abc", ["x", "y"])
    nan = np.nan
    np.testing.assert_array_equal(found.per_image(true_positives=True), [[0.5, nan, nan], [1, nan, nan]])
    np.testing.assert_array_equal(found.per_image(true_positives=False), [[0.5, 0, nan], [1, 0, nan]])


def test_missing_tasks_are_told_and_scored_as_said():
    left = np.array([[1, 1, 0, 0]])
    found = metrics.overlap({"x": entry(left, tasks="a")}, {"x": entry(left, left, tasks="bc")}, "abc", ["x"])
    np.testing.assert_array_equal(found.truth, [[np.nan, 2, 2]])
    np.testing.assert_array_equal(found.predicted, [[np.nan, 0, 0]])
    np.testing.assert_array_equal(found.union, [[np.nan, 2, 2]])
    assert found.notes == [
        "a: not annotated in 1 images, not scored there",
        "b: no prediction in 1 images, counted as empty",
        "c: no prediction in 1 images, counted as empty",
    ]


def test_masks_of_different_size_are_refused_by_name():
    with pytest.raises(DataError, match="^x: b: prediction is 1 x 4, ground truth is 4 x 1"):
        metrics.overlap({"x": {"b": rle.empty((1, 4))}}, {"x": {"b": rle.empty((4, 1))}}, "ab", ["x"])


# AUROC
def test_auroc_by_hand():
    assert metrics.auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert metrics.auroc([1, 1, 1], [0, 1, 1]) == 0.5
    assert np.isnan(metrics.auroc([0.1, 0.2], [1, 1]))
    assert metrics.auroc([0.1, np.nan, 0.3, 0.2], [0, 0, 1, np.nan]) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_counts_pairs(rows):
    positive, negative = ([s for s, y in rows if y is kind] for kind in (True, False))
    found = metrics.auroc(*np.array(rows, float).T)
    if positive and negative:
        pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
        assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    else:
        assert np.isnan(found)
