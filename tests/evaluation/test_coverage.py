"""Intervals contain the truth as often as they say, and p is below 5% in about 5% of comparisons of equals.

A made population, whose scores are known: ten tasks, some of them rare, each found with a quality of its own, with
false positives. Sets are drawn from it, each is scored as a test set is.
"""

import numpy as np
import pytest

from chexseg.evaluation import bootstrap, metrics

COMMON = np.array([0.35, 0.3, 0.06, 0.6, 0.25, 0.1, 0.25, 0.08, 0.4, 0.6])
RARE = np.where(np.arange(10) % 3 == 2, COMMON / 4, COMMON)
QUALITY = np.array([0.6, 0.7, 0.1, 0.7, 0.6, 0.3, 0.4, 0.3, 0.6, 0.3])
FALSE_POSITIVES = 0.15


def population(count, prevalence, rng):
    """Counts of pixels in `count` images: intersection, union, predicted and truth, (count, 10) each."""
    shape = count, len(prevalence)
    positive = rng.random(shape) < prevalence
    truth = rng.lognormal(0, 0.5, shape) * positive
    intersection = truth * rng.beta(4 * QUALITY, 4 * (1 - QUALITY), shape)
    beside = rng.lognormal(-1, 0.7, shape) * np.where(positive, 1, rng.random(shape) < FALSE_POSITIVES)
    return intersection, truth + beside, intersection + beside, truth


def overlap_of(counts):
    images = [f"p{i:06d}_a_b" for i in range(len(counts[0]))]
    return metrics.Overlap(images, tuple("abcdefghij"), *counts)


def scores_of(counts, protocol, num_replicates, seed):
    found = overlap_of(counts)
    return bootstrap.score(found, bootstrap.Resamples(found.images, num_replicates, seed), protocol)


def population_scores(counts, protocol):
    large = overlap_of(counts)
    return bootstrap.score(large, bootstrap.Resamples(large.images[:1] * len(large.images), 0), protocol).values[0]


def coverage(prevalence, num_patients, protocol, num_sets, seed):
    """Shares of `num_sets` sets whose interval holds the population's mIoU, and whose task intervals hold theirs, the
    latter of tasks of at least 5 patients."""
    rng = np.random.default_rng(seed)
    truth = population_scores(population(60_000, prevalence, rng), protocol)
    hits, task_hits = [], []
    for number in range(num_sets):
        scores = scores_of(population(num_patients, prevalence, rng), protocol, 400, number)
        values, lower, upper = bootstrap.intervals(scores).T
        occurs = ~np.isnan(values[:-1])
        hits.append(lower[-1] <= truth[:-1][occurs].mean() <= upper[-1])
        enough = scores.n_patients >= 5
        task_hits += list(((lower <= truth) & (truth <= upper))[:-1][enough])
    return np.mean(hits), np.mean(task_hits)


def second_method(counts, rng):
    """Another method on the same films, of three quarters of the recall and as many false positives."""
    intersection, _, predicted, truth = counts
    again = intersection * np.minimum(1, rng.beta(6, 2, truth.shape))
    beside = (predicted - intersection) * rng.lognormal(0, 0.3, truth.shape)
    return again, truth + beside, again + beside, truth


def paired_coverage(prevalence, num_patients, protocol, num_sets, seed):
    """Shares of sets whose intervals hold the difference, and the ratio, of two methods' mIoU on the same films."""
    rng = np.random.default_rng(seed)
    first = population(60_000, prevalence, rng)
    true_a, true_b = (population_scores(x, protocol)[:-1] for x in (first, second_method(first, rng)))
    differences, ratios = [], []
    for number in range(num_sets):
        one = population(num_patients, prevalence, rng)
        a, b = (scores_of(x, protocol, 400, number) for x in (one, second_method(one, rng)))
        occurs = ~np.isnan(a.values[0, :-1])
        _, lower, upper = bootstrap.interval(bootstrap.difference(a, b)[:, -1])
        differences.append(lower <= (true_a - true_b)[occurs].mean() <= upper)
        _, lower, upper = bootstrap.interval(bootstrap.ratio(a, b))
        ratios.append(lower <= true_a[occurs].mean() / true_b[occurs].mean() <= upper)
    return np.mean(differences), np.mean(ratios)


def test_intervals_of_a_test_set_cover_the_truth():
    """150 sets: the share is known to 1.8%, so that 95% may show as 90 to 99%."""
    for protocol in ("pooled", "per_image"):
        mean, tasks = coverage(COMMON, 120, protocol, 150, seed=3)
        assert 0.90 <= mean <= 0.99 and 0.92 <= tasks <= 0.98, (protocol, mean, tasks)
    assert all(0.90 <= share <= 0.99 for share in paired_coverage(RARE, 120, "pooled", 100, seed=3))


SETTINGS = [
    pytest.mark.soak,
    pytest.mark.parametrize("protocol", bootstrap.PROTOCOLS),
    pytest.mark.parametrize("num_patients", [60, 150, 500]),
    pytest.mark.parametrize("prevalence", [COMMON, RARE], ids=["common", "rare"]),
]


def in_all_settings(test):
    for mark in SETTINGS:
        test = mark(test)
    return test


@in_all_settings
def test_intervals_cover_the_truth_93_to_97_percent_of_the_time(prevalence, num_patients, protocol):
    """1500 sets: known to 0.6%, which is how far a true 93 or 97% may stray."""
    mean, tasks = coverage(prevalence, num_patients, protocol, 1500, seed=num_patients)
    print(f"\n{protocol}, {num_patients} patients: mIoU {mean:.3f}, tasks of at least 5 patients {tasks:.3f}")
    assert 0.93 <= mean <= 0.97 and 0.93 <= tasks <= 0.97


@in_all_settings
def test_intervals_of_two_methods_cover_the_truth_93_to_98_percent_of_the_time(prevalence, num_patients, protocol):
    """What a task of one or two patients lacks is taken from the others, whose differences may be larger."""
    difference, ratio = paired_coverage(prevalence, num_patients, protocol, 1500, seed=num_patients)
    print(f"\n{protocol}, {num_patients} patients: difference {difference:.3f}, ratio {ratio:.3f}")
    assert 0.93 <= difference <= 0.98 and 0.93 <= ratio <= 0.98


def test_equal_methods_differ_significantly_in_a_twentieth_of_comparisons():
    rng = np.random.default_rng(4)
    significant = []
    for number in range(200):
        one, other = (list(population(120, COMMON, rng)) for _ in range(2))
        # The same films and truth, two methods of equal quality.
        beside = other[2] - other[0]
        share = np.divide(other[0], other[3], out=np.zeros_like(other[0]), where=other[3] > 0)
        recall = np.where(other[3] > 0, share, rng.beta(4 * QUALITY, 4 * (1 - QUALITY), one[0].shape))
        again = [one[3] * recall, one[3] + beside, one[3] * recall + beside, one[3]]
        a, b = overlap_of(one), overlap_of(again)
        resamples = bootstrap.Resamples(a.images, 300, number)
        scores = [bootstrap.score(x, resamples, "pooled") for x in (a, b)]
        significant.append(bootstrap.p_value(bootstrap.difference(*scores)[:, -1]) < 0.05)
    assert 0.01 <= np.mean(significant) <= 0.10
