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


def pandas_score(found, rows, protocol):
    """One replicate: `rows` are image indices, each as often as it was drawn."""
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
    return np.append(iou.to_numpy(), iou.mean())


@pytest.mark.parametrize("protocol", bootstrap.PROTOCOLS)
@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_equals_a_pandas_loop_over_the_same_draws(protocol, seed):
    found = random_overlap(seed)
    resamples = bootstrap.Resamples(found.images, 50, seed)
    scores = bootstrap.score(found, resamples, protocol)
    patients = sorted({patient_of(name) for name in found.images})
    assert (resamples.weights.sum(1) == len(patients)).all()
    for weights, values in zip(resamples.weights, scores.values, strict=True):
        rows = [
            row
            for patient, count in zip(patients, weights, strict=True)
            for _ in range(count)
            for row, name in enumerate(found.images)
            if patient_of(name) == patient
        ]
        np.testing.assert_allclose(values, pandas_score(found, rows, protocol), rtol=1e-12)
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
