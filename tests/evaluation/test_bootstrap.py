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
    np.testing.assert_allclose(shuffled.sums(values[::-1])[0], bootstrap.Resamples(images, 200, 1).sums(values)[0])


def test_sums_do_not_depend_on_the_chunk(monkeypatch):
    found = random_overlap(5)
    resamples = bootstrap.Resamples(found.images, 30)
    [whole] = resamples.sums(found.union)
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS", 13)
    np.testing.assert_allclose(resamples.sums(found.union)[0], whole, rtol=1e-14)


def test_differences_and_ratios_are_paired():
    a, b = random_overlap(7), random_overlap(8)
    resamples = bootstrap.Resamples(a.images, 100)
    first, second = (bootstrap.score(x, resamples, "pooled") for x in (a, b))
    np.testing.assert_array_equal(bootstrap.difference(first, first)[:, :3], 0)
    np.testing.assert_array_equal(bootstrap.difference(first, second)[0], first.values[0] - second.values[0])
    ratios = bootstrap.ratio(first, second)
    assert ratios[0] == pytest.approx(first.values[0, -1] / second.values[0, -1])
    np.testing.assert_allclose(bootstrap.ratio(first, first), 1)
    zero = overlap_of([[0], [0]], [[4], [5]], [[0], [0]])
    nothing = bootstrap.score(zero, bootstrap.Resamples(zero.images, 9), "pooled")
    assert np.isnan(bootstrap.ratio(nothing, nothing)).all()


def test_the_mean_of_trainings_is_paired_with_each():
    a, b = random_overlap(7), random_overlap(8)
    resamples = bootstrap.Resamples(a.images, 100)
    first, second = (bootstrap.score(x, resamples, "pooled") for x in (a, b))
    both = bootstrap.mean([first, second])
    np.testing.assert_allclose(both.values, (first.values + second.values) / 2)
    np.testing.assert_array_equal(bootstrap.mean([first, first]).steadied(), first.steadied())
    expected = (first.influence.of_patient + second.influence.of_patient) / 2
    np.testing.assert_allclose(both.influence.of_patient, expected)


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


def influence_of(of_patient, positive=None, share=1.0):
    of_patient = np.array(of_patient, float)
    positive = of_patient != 0 if positive is None else np.array(positive, bool)
    return bootstrap.Influence(of_patient, positive, np.full(of_patient.shape[1], share))


def test_influence_is_what_a_patients_weight_does_to_the_score():
    """Against the score itself with one patient's weight a little higher."""
    for protocol in bootstrap.PROTOCOLS:
        found = random_overlap(3)
        resamples = bootstrap.Resamples(found.images, 1)
        resamples.weights = np.ones((1 + resamples.weights.shape[1], resamples.weights.shape[1]))
        rise = 1e-6
        resamples.weights[1:] += rise * np.eye(len(resamples.weights) - 1)
        scores = bootstrap.score(found, resamples, protocol)
        slopes = (scores.values[1:, :3] - scores.values[0, :3]) / rise
        np.testing.assert_allclose(scores.influence.of_patient[:, :3], slopes, atol=1e-5)
        assert not scores.influence.of_patient[:, 3].any()  # never occurs


def test_the_variance_of_a_mean_over_patients_by_hand():
    # Four patients of scores 0.2, 0.4, 0.6, 0.8: s^2 = 0.2 / 3, and that of their mean a quarter.
    scores = np.array([0.2, 0.4, 0.6, 0.8])
    variance = influence_of(((scores - 0.5) / 4)[:, None], np.ones((4, 1))).variance()
    assert variance.total[0] == pytest.approx(0.2 / 3 / 4)
    # A second task, of one patient, knows nothing of its own spread: the first one's, of a single patient.
    both = np.zeros((4, 2))
    both[:, 0] = (scores - 0.5) / 4
    positive = np.array([[1, 1], [1, 0], [1, 0], [1, 0]])
    variance = influence_of(both, positive).variance()
    np.testing.assert_allclose(variance.total, [0.2 / 3 / 4, 0.2 / 3])
    assert variance.own_doubt[1] == 0 < variance.own_doubt[0]
    # Half of its denominator are false positives: a quarter of that variance.
    halved = bootstrap.Influence(both, positive > 0, np.array([1, 0.5])).variance()
    assert halved.total[1] == pytest.approx(0.2 / 3 / 4)


def test_an_interval_of_few_patients_is_students():
    scipy = pytest.importorskip("scipy.stats")
    for degrees in (2, 3, 5, 10, 100):
        expected = scipy.t.ppf(0.975, degrees) / scipy.norm.ppf(0.975)
        assert bootstrap._student(np.array(degrees)) == pytest.approx(expected, rel=0.04 if degrees == 2 else 0.01)


def test_replicates_are_as_wide_as_the_variance_says():
    rng = np.random.default_rng(1)
    values = 0.5 + rng.standard_normal((8001, 3)) * [0, 0.02, 0.08]  # too little, right, too much
    values[0] = 0.5
    target = np.array([0.05, 0.02, 0.04])
    certain = bootstrap.Variance(target**2, np.zeros(3), np.zeros(3))  # as of very many degrees of freedom
    wide = bootstrap.steadied(values, certain)
    np.testing.assert_allclose(wide[1:, :3].std(0), target, rtol=0.03)
    np.testing.assert_array_equal(wide[0], [0.5] * 4)
    np.testing.assert_allclose(wide[:, 3], wide[:, :3].mean(1))
    doubtful = bootstrap.steadied(values, bootstrap.Variance(target**2, target**4 / 2, np.zeros(3)))
    np.testing.assert_allclose(doubtful[1:, :3].std(0), target * bootstrap._student(np.array(2.0)), rtol=0.05)
    lost = bootstrap.steadied(np.full((50, 2), np.nan), bootstrap.Variance(*np.zeros((3, 2))))
    assert np.isnan(lost).all()


def test_p_value_and_holm_by_hand():
    assert bootstrap.p_value(np.array([1, *range(-4, 95)])) == pytest.approx(2 * (5 + 1) / 100)
    assert bootstrap.p_value(np.append(1, np.ones(99))) == pytest.approx(2 / 100)
    assert bootstrap.p_value(np.zeros(20)) == 1
    assert np.isnan(bootstrap.p_value(np.array([np.nan, 1, 2])))
    adjusted = bootstrap.holm([0.01, 0.04, np.nan, 0.03, 0.9])
    np.testing.assert_allclose(adjusted, [0.04, 0.09, np.nan, 0.09, 0.9])
    assert bootstrap.holm([0.6, 0.5]).tolist() == [1, 1] and not len(bootstrap.holm([]))
