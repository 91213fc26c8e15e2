"""Bootstrap over patients, against a pandas loop over the same draws."""

import numpy as np
import pandas as pd
import pytest

from chexseg.data.chexpert import patient_of
from chexseg.evaluation import bootstrap, metrics


def random_overlap(seed, num_images=14, tasks="abcd"):
    """Images of 6 patients; task d never occurs; some pairs are not annotated; some are empty on one or both sides."""
    rng = np.random.default_rng(seed)
    shape = num_images, len(tasks)
    predicted, truth = (rng.integers(0, 30, shape) * (rng.random(shape) < 0.6) for _ in range(2))
    truth[:, 3] = 0
    intersection = np.floor(np.minimum(predicted, truth) * rng.random(shape))
    union = predicted + truth - intersection
    counts = [np.array(x, float) for x in (intersection, union, predicted, truth)]
    for x in counts:
        x[2, 0] = np.nan
    images = [f"patient{i % 6:05d}_study{i}_view1_frontal" for i in range(num_images)]
    return metrics.Overlap(images, tuple(tasks), *counts)


def pandas_score(found, rows, protocol, measured=None):
    """One replicate: `rows` are image indices, each as often as it was drawn. A task that none of them has keeps its
    `measured` value in the mean."""
    never = ~((found.predicted > 0) & (found.truth > 0)).any(0)
    frames = {}
    for name in ("intersection", "union", "predicted", "truth"):
        frames[name] = pd.DataFrame(getattr(found, name)[rows], columns=list(found.tasks))
    occurs = (frames["truth"] > 0).any()
    if protocol == "pooled":
        iou = frames["intersection"].sum() / frames["union"].sum()
    else:
        each = frames["intersection"] / frames["union"]
        if protocol == "per_image":
            each = each.where((frames["predicted"] > 0) & (frames["truth"] > 0))
        iou = each.mean()
        iou = iou.mask(never, 0) if protocol == "per_image" else iou
    iou = iou.where(occurs)
    return np.append(iou.to_numpy(), (iou if measured is None else iou.fillna(measured)).mean())


@pytest.mark.parametrize("protocol", bootstrap.PROTOCOLS)
@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_equals_a_pandas_loop_over_the_same_draws(protocol, seed):
    found = random_overlap(seed)
    resamples = bootstrap.Resamples(found.images, 50, seed)
    scores = bootstrap.score(found, resamples, protocol)
    patients = sorted({patient_of(name) for name in found.images})
    assert (resamples.weights.sum(1) == len(patients)).all()
    measured = pd.Series(scores.values[0, :-1], list(found.tasks))
    for weights, values in zip(resamples.weights, scores.values, strict=True):
        rows = [
            row
            for patient, count in zip(patients, weights, strict=True)
            for _ in range(count)
            for row, name in enumerate(found.images)
            if patient_of(name) == patient
        ]
        np.testing.assert_allclose(values, pandas_score(found, rows, protocol, measured), rtol=1e-12)
    np.testing.assert_allclose(scores.values[0], pandas_score(found, range(len(found.images)), protocol), rtol=1e-12)
    assert np.isnan(scores.values[:, 3]).all() and not np.isnan(scores.values[0, :3]).any()


def test_interval_is_the_percentiles_of_the_replicates():
    value, lower, upper = bootstrap.interval(np.append(0.5, np.arange(1001) / 1000))
    assert (value, lower, upper) == (0.5, pytest.approx(0.025), pytest.approx(0.975))
    assert np.isnan(bootstrap.interval(np.array([np.nan, 1, 2]))).all()
    value, lower, upper = bootstrap.interval(np.array([0.5, np.nan, np.nan]))
    assert value == 0.5 and np.isnan([lower, upper]).all()
    assert bootstrap.interval(np.array([1, np.nan, 3, 3.0])) == (1, 3, 3)


def test_counts_of_images():
    nan = np.nan
    truth = np.array([[4, 0, nan], [4, 0, 0], [0, 0, 0]])
    predicted = np.array([[4, 1, nan], [0, 0, 0], [1, 0, 0]])
    intersection, union = np.array([[2, 0, nan], [0, 0, 0], [0, 0, 0]]), np.array([[6, 1, nan], [4, 0, 0], [1, 0, 0]])
    found = metrics.Overlap([f"p{i}_a_b" for i in range(3)], tuple("abc"), intersection, union, predicted, truth)
    resamples = bootstrap.Resamples(found.images, 10)
    expected = {
        "pooled": ([3, 3, 2, 3], 2 / 11),
        "per_image": ([1, 0, 0, 1], 1 / 3),
        "per_image_all": ([3, 1, 0, 3], 1 / 9),
    }
    for protocol, (n_images, iou) in expected.items():
        scores = bootstrap.score(found, resamples, protocol)
        assert scores.n_images.tolist() == n_images and scores.n_positive.tolist() == [2, 0, 0, 2]
        np.testing.assert_allclose(scores.values[0], [iou, nan, nan, iou])


def test_draws_are_of_patients_seeded_and_the_same_for_any_order_of_images():
    images = [f"patient{i // 2}_study{i}_view" for i in range(10)]
    first, again, other = (bootstrap.Resamples(images, 200, seed).weights for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (201, 5) and (first[0] == 1).all() and first[1:].std() > 0.5
    shuffled = bootstrap.Resamples(images[::-1], 200, 1)
    values = np.arange(10.0)[:, None]
    np.testing.assert_allclose(shuffled.sums(values[::-1]), bootstrap.Resamples(images, 200, 1).sums(values))


def test_sums_do_not_depend_on_the_chunk(monkeypatch):
    found = random_overlap(5)
    resamples = bootstrap.Resamples(found.images, 30)
    whole = resamples.sums(found.union)
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS", 13)
    np.testing.assert_allclose(resamples.sums(found.union), whole, rtol=1e-14)


def test_differences_and_ratios_are_paired():
    a, b = random_overlap(7), random_overlap(8)
    resamples = bootstrap.Resamples(a.images, 100)
    first, second = (bootstrap.score(x, resamples, "pooled") for x in (a, b))
    np.testing.assert_array_equal(bootstrap.difference(first, first)[:, :3], 0)
    np.testing.assert_array_equal(bootstrap.difference(first, second)[0], first.values[0] - second.values[0])
    np.testing.assert_allclose(bootstrap.ratio(first, second)[:, -1] * second.values[:, -1], first.values[:, -1])
    zero = bootstrap.Scores(("a",), np.zeros((3, 2)), np.zeros(2), np.zeros(2))
    assert np.isnan(bootstrap.ratio(zero, zero)).all()


def test_unknown_protocol_is_refused():
    found = random_overlap(9)
    with pytest.raises(ValueError, match="protocol 'mixed'"):
        bootstrap.score(found, bootstrap.Resamples(found.images, 2), "mixed")


def overlap_of(predicted, truth, intersection, pixels=100):
    """(images, tasks) counts of one patient an image."""
    predicted, truth, intersection = (np.array(x, float) for x in (predicted, truth, intersection))
    images = [f"p{i}_a_b" for i in range(len(truth))]
    tasks = tuple("abcdefgh"[: truth.shape[1]])
    union = predicted + truth - intersection
    return metrics.Overlap(images, tasks, intersection, union, predicted, truth, pixels=np.full(truth.shape, pixels))


def test_every_metric_under_every_protocol_by_hand():
    # Three images of 100 pixels: found in part, missed, and a false positive.
    found = overlap_of([[20], [0], [10]], [[40], [10], [0]], [[15], [0], [0]])
    resamples = bootstrap.Resamples(found.images, 5)
    expected = {
        "pooled": (15 / 65, 30 / 80, 15 / 30, 15 / 50, (55 + 90 + 90) / (60 + 90 + 100)),
        "per_image": (15 / 45, 30 / 60, 15 / 20, 15 / 40, 55 / 60),
        "per_image_all": (15 / 45 / 3, 0.5 / 3, 0.75 / 2, 15 / 40 / 2, (55 / 60 + 1 + 0.9) / 3),
    }
    for protocol, values in expected.items():
        for metric, value in zip(metrics.METRICS, values, strict=True):
            assert bootstrap.score(found, resamples, protocol, metric).values[0, 0] == pytest.approx(value), metric


def test_a_method_that_says_nothing_scores_zero_but_is_specific():
    found = overlap_of([[0], [0]], [[40], [0]], [[0], [0]])
    resamples = bootstrap.Resamples(found.images, 5)
    for protocol in bootstrap.PROTOCOLS:
        values = {m: bootstrap.score(found, resamples, protocol, m).values[0, 0] for m in metrics.METRICS}
        specificity = values.pop("specificity")
        assert set(values.values()) == {0}
        assert np.isnan(specificity) if protocol == "per_image" else specificity == 1


@pytest.mark.parametrize("protocol", bootstrap.PROTOCOLS)
def test_a_task_that_vanishes_does_not_lift_the_mean_of_the_others(protocol):
    # Task b, of one patient alone, is never found; without it a replicate's mean would jump from 0.25 to 0.5.
    found = overlap_of([[10, 0]] * 8, [[20, 0]] * 7 + [[20, 5]], [[10, 0]] * 8)
    scores = bootstrap.score(found, bootstrap.Resamples(found.images, 200), protocol)
    assert np.isnan(scores.values[:, 1]).any()
    np.testing.assert_allclose(scores.values[:, -1], 0.25)
    assert bootstrap.interval(scores.values[:, -1]) == (0.25, 0.25, 0.25)


def test_patients_of_a_score_are_counted():
    found = overlap_of([[10, 0]] * 4, [[20, 0]] * 3 + [[0, 5]], [[10, 0]] * 4)
    found.images[1] = "p0_c_d"
    scores = bootstrap.score(found, bootstrap.Resamples(found.images, 5), "pooled")
    assert scores.n_patients.tolist() == [2, 1] and scores.n_positive.tolist() == [3, 1, 4]


def test_steadied_adds_what_few_patients_cannot_show():
    rng = np.random.default_rng(1)
    replicates = 4000
    true_spread = 0.2  # of one patient
    shown = [true_spread * np.sqrt(max(k - 1, 0)) / k for k in (1, 2, 100)]
    values = np.clip(0.5 + rng.standard_normal((replicates + 1, 3)) * shown, 0, 1)
    values[0] = 0.5
    wide = bootstrap.steadied(values, np.array([1, 2, 100]))
    np.testing.assert_allclose(wide[1:, :3].std(0), [0.2, 0.2 / np.sqrt(2), 0.02], rtol=0.06)
    np.testing.assert_array_equal(wide[0], [0.5] * 4)
    np.testing.assert_allclose(wide[:, 3], wide[:, :3].mean(1))
    certain = np.ones((50, 2))
    np.testing.assert_array_equal(bootstrap.steadied(certain, np.array([1, 3])), 1)
    lost = np.full((50, 2), np.nan)
    assert np.isnan(bootstrap.steadied(lost, np.array([0, 0]))).all()


def test_p_value_and_holm_by_hand():
    assert bootstrap.p_value(np.array([1, *range(-4, 95)])) == pytest.approx(2 * (5 + 1) / 100)
    assert bootstrap.p_value(np.append(1, np.ones(99))) == pytest.approx(2 / 100)
    assert bootstrap.p_value(np.zeros(20)) == 1
    assert np.isnan(bootstrap.p_value(np.array([np.nan, 1, 2])))
    adjusted = bootstrap.holm([0.01, 0.04, np.nan, 0.03, 0.9])
    np.testing.assert_allclose(adjusted, [0.04, 0.09, np.nan, 0.09, 0.9])
    assert bootstrap.holm([0.6, 0.5]).tolist() == [1, 1] and not len(bootstrap.holm([]))
