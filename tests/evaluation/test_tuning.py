"""Thresholds and cut-offs: counts at all thresholds against one at a time, choices by hand, the files they go to."""

import numpy as np
import pytest

from chexseg.evaluation import tuning
from chexseg.evaluation.metrics import Overlap
from chexseg.evaluation.tuning import Curves


@pytest.fixture
def example():
    """Four films, three tasks; the second is unknown in film 1, the third nowhere to be seen."""
    rng = np.random.default_rng(0)
    values, truth = rng.random((4, 3, 6, 7)), rng.random((4, 3, 6, 7)) < 0.4
    values[0, 0, 0] = tuning.THRESHOLDS[:7]  # exactly on thresholds, where `above` is strict
    values[2, 1, 1, :3] = np.nan, np.inf, -np.inf
    truth[3, 0] = False
    truth[:, 2] = False
    histograms = np.array(
        [[tuning.histogram(v, t) for v, t in zip(*film, strict=True)] for film in zip(values, truth, strict=True)]
    )
    histograms = histograms.astype(float)
    histograms[1, 1] = np.nan
    return values, truth, Curves.of(list("abcd"), ("x", "y", "z"), histograms)


def naive(values, truth, threshold):
    """(N, T) predicted and common pixels, and true ones."""
    inside = np.where(np.isfinite(values), values, -1) > threshold
    counts = [a.sum((2, 3)).astype(float) for a in (inside, inside & truth, truth)]
    for each in counts:
        each[1, 1] = np.nan
    return counts


def test_all_thresholds_at_once(example):
    values, truth, curves = example
    assert curves.predicted.shape == (4, 3, 100)
    for k in (0, 1, 5, 37, 99):
        predicted, both, true = naive(values, truth, curves.thresholds[k])
        np.testing.assert_array_equal(curves.predicted[..., k], predicted)
        np.testing.assert_array_equal(curves.intersection[..., k], both)
        np.testing.assert_array_equal(curves.truth, true)


@pytest.mark.parametrize("criterion", tuning.CRITERIA)
def test_scores_against_one_threshold_at_a_time(example, criterion):
    values, truth, curves = example
    scores = curves.scores(criterion)
    assert np.isnan(scores[2]).all() and not np.isnan(scores[:2]).any()
    for k in (0, 20, 60, 99):
        predicted, both, true = naive(values, truth, curves.thresholds[k])
        union = predicted + true - both
        for task in range(2):
            if criterion == "pooled":
                expected = np.nansum(both[:, task]) / np.nansum(union[:, task])
            else:
                rows = (predicted[:, task] > 0) & (true[:, task] > 0)
                expected = (both[rows, task] / union[rows, task]).mean() if rows.any() else 0
            assert scores[task, k] == pytest.approx(expected)


def test_films_with_the_finding_only(example):
    _, _, curves = example
    positive = curves.only_positive()
    assert np.isnan(positive.truth[3, 0]) and np.isnan(positive.predicted[3, 0]).all()
    np.testing.assert_array_equal(positive.truth[:3, 0], curves.truth[:3, 0])
    assert (positive.scores()[0] >= curves.scores()[0]).all()  # no false positives of film 3


def overlap():
    """Two tasks on three films, in pixels: film 2 has no finding; in task 1 the masks of film 1 are unknown."""
    both = np.array([[6.0, 2], [3, np.nan], [0, 0]])
    predicted = np.array([[8.0, 4], [4, np.nan], [10, 1]])
    truth = np.array([[8.0, 2], [7, np.nan], [0, 0]])
    return Overlap(list("abc"), ("x", "y"), both, predicted + truth - both, predicted, truth)


def test_scores_by_hand():
    # Pooled: (6 + 3) / (10 + 8 + 10) and 2 / (4 + 1).
    np.testing.assert_allclose(tuning.score(overlap()), [9 / 28, 2 / 5])
    # Per image: 6/10, 3/8, 0 and 2/4, 0; of those with both masks 6/10, 3/8 and 2/4.
    np.testing.assert_allclose(tuning.score(overlap(), "per_image"), [(0.6 + 0.375) / 3, 0.25])
    np.testing.assert_allclose(tuning.score(overlap(), "per_image", true_positives=True), [(0.6 + 0.375) / 2, 0.5])
    with pytest.raises(ValueError, match="'mean': expected one of pooled, per_image"):
        tuning.score(overlap(), "mean")


def test_cutoffs_by_hand():
    probabilities = np.array([[0.9, 0.5], [0.6, 0.9], [0.6, 0.7]])
    scores = tuning.cutoff_scores(overlap(), probabilities, cutoffs=(0.0, 0.5, 0.6, 0.9))
    # Task x: all; all; above 0.6 only film a, 6 of 10 + 7 unpredicted; none. Task y: all; then no mask at all is right.
    np.testing.assert_allclose(scores[0], [9 / 28, 9 / 28, 6 / 17, 0])
    np.testing.assert_allclose(scores[1], [2 / 5, 0, 0, 0])
    assert tuning.best(scores).tolist() == [2, 0]
    every = tuning.cutoff_scores(overlap(), probabilities, "per_image", cutoffs=(0.0, 0.6))
    np.testing.assert_allclose(every, [[(0.6 + 0.375) / 3, 0.6 / 2], [0.25, 0]])


def test_best_is_the_first_of_equals_and_none_of_nothing():
    nan = float("nan")
    scores = np.array([[0.1, 0.3, 0.3], [nan, nan, nan], [nan, 0, 0], [nan, 0.1, 0]])
    assert tuning.best(scores).tolist() == [1, -1, -1, 1]


def test_files_as_chexlocalize_has_them(tmp_path):
    scores = np.array([[0.1, 0.25], [np.nan, np.nan], [0, 0]])
    tuning.write_thresholds(tmp_path / "t.csv", ("x", "y", "z"), (0.3, 0.7), tuning.best(scores))
    assert (tmp_path / "t.csv").read_text() == "threshold,task\n0.7,x\n"
    tuning.write_cutoffs(tmp_path / "c.csv", ("x", "y", "z"), (0.3, 0.7), scores)
    assert (tmp_path / "c.csv").read_text() == "prob_threshold,mIoU,task\n0.3,0.100000,x\n0.7,0.250000,x\n"
