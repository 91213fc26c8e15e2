import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chexseg.data import rle
from chexseg.data.chexpert import patient_of
from chexseg.errors import DataError
from chexseg.evaluation import bootstrap, metrics, pooled_iou

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# IoU at 20 thresholds


def naive_iou(probabilities, targets):
    """(classes, 20): binarise once for every threshold, as the original does."""
    rows = []
    for c in range(probabilities.shape[1]):
        truth = targets[:, c] > 0
        row = []
        for threshold in pooled_iou.THRESHOLDS:
            predicted = probabilities[:, c].double() > threshold
            union = (predicted | truth).sum().item()
            row.append((predicted & truth).sum().item() / union if truth.any() else float("nan"))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


EDGES = [0.0, 1e-30, *(i / 20 for i in range(1, 21)), *(float(np.nextafter(np.float32(i / 20), 2)) for i in range(20))]
PROBABILITIES = st.one_of(
    st.floats(0, 1, width=32), st.sampled_from([float(np.float32(e)) for e in EDGES]), st.just(float("nan"))
)


@st.composite
def batches(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)))
    probabilities = draw(arrays.arrays(np.float32, shape, elements=PROBABILITIES))
    return torch.from_numpy(probabilities), torch.from_numpy(draw(arrays.arrays(bool, shape)))


def pooled(probabilities, targets, splits=()):
    pool = pooled_iou.PooledIoU(probabilities.shape[1])
    for p, t in zip(torch.tensor_split(probabilities, splits), torch.tensor_split(targets, splits), strict=True):
        pool.update(p, t)
    return pool


def test_pooled_iou_by_hand():
    # One class, two images of two pixels. Threshold 0.5 predicts 0.9 and 0.6: one of them right, two true in all.
    probabilities = torch.tensor([[[[0.9, 0.5]]], [[[0.6, 0.0]]]])
    targets = torch.tensor([[[[1, 1]]], [[[0, 0]]]])
    iou = pooled(probabilities, targets).iou()[0]
    assert iou[pooled_iou.THRESHOLDS.index(0.5)] == 1 / 3  # 0.5 is not above 0.5
    assert iou[pooled_iou.THRESHOLDS.index(0.45)] == 2 / 3
    assert iou[pooled_iou.THRESHOLDS.index(0.6)] == 1 / 3  # float32(0.6) is a little above 0.6
    assert iou[pooled_iou.THRESHOLDS.index(0.65)] == 1 / 2
    assert iou[pooled_iou.THRESHOLDS.index(0.95)] == 0
    assert iou[0] == 2 / 3  # threshold 0: any positive probability
    best, threshold = pooled(probabilities, targets).best()
    assert best.tolist() == [2 / 3] and threshold.tolist() == [0.0]


@settings(max_examples=150)
@given(batches())
def test_histogram_equals_repeating_twenty_times(batch):
    torch.testing.assert_close(pooled(*batch).iou(), naive_iou(*batch), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=50)
@given(batches(), st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
def test_the_device_independent_count_is_the_cpus(batch, dtype):
    probabilities, targets = (x.flatten(2) for x in batch)
    probabilities = probabilities.to(dtype)
    found = pooled_iou._count(probabilities, targets)
    assert torch.equal(found, pooled_iou._count_on_cpu(probabilities, targets))
    assert found.sum() == targets.numel()


def test_a_gpu_is_never_waited_for():
    """Without values (on the device `meta`) whatever the host needs to know fails."""
    pool = pooled_iou.PooledIoU(3, "meta")
    pool.update(torch.rand(2, 3, 4, 5, device="meta"), torch.ones(2, 3, 4, 5, device="meta"))
    assert pool.counts.dtype == torch.int64


@settings(max_examples=30)
@given(batches(), st.data())
def test_batches_and_classes_may_be_split_and_permuted(batch, more):
    probabilities, targets = batch
    whole = pooled(*batch)
    assert torch.equal(pooled(*batch, splits=(1,)).counts, whole.counts)
    order = more.draw(st.permutations(range(probabilities.shape[1])))
    assert torch.equal(pooled(probabilities[:, order], targets[:, order]).counts, whole.counts[list(order)])
    assert torch.equal(pooled(probabilities.mT, targets.mT).counts, whole.counts)


def test_more_pixels_than_a_slice(monkeypatch):
    torch.manual_seed(0)
    batch = torch.rand(2, 2, 9, 9), torch.rand(2, 2, 9, 9) > 0.5
    whole = pooled(*batch).counts
    monkeypatch.setattr(pooled_iou, "_SLICE", 7)
    assert torch.equal(pooled(*batch).counts, whole) and whole.sum() == 2 * 2 * 81


@pytest.mark.filterwarnings("error")  # casting a NaN to a byte gives anything
def test_probabilities_out_of_range_and_in_half_precision():
    targets = torch.ones(1, 1, 1, 4)
    assert pooled(torch.tensor([[[[-1, float("inf"), 2, float("nan")]]]]), targets).iou()[0].tolist() == [0.5] * 20
    half = torch.tensor([[[[0.5, 0.51, 0.96, 0.0]]]], dtype=torch.bfloat16)
    torch.testing.assert_close(pooled(half, targets).iou(), naive_iou(half, targets))


def test_classes_that_never_occur_are_left_out():
    probabilities = torch.tensor([[[[0.9]], [[0.9]], [[0.2]]]])
    targets = torch.tensor([[[[1]], [[0]], [[0]]]])
    best, threshold = pooled(probabilities, targets).best()
    assert best[0] == 1 and best[1:].isnan().all() and threshold.tolist() == [0, 0.5, 0.5]
    assert metrics.mean_iou(best) == 1
    assert np.isnan(metrics.mean_iou(best[1:]))


def test_best_takes_the_lowest_of_equal_thresholds():
    probabilities, targets = torch.tensor([[[[0.42, 0.12]]]]), torch.tensor([[[[1, 0]]]])
    best, threshold = pooled(probabilities, targets).best()
    assert best.tolist() == [1.0] and threshold.tolist() == [pytest.approx(0.15)]


def test_iou_at_given_thresholds():
    torch.manual_seed(1)
    pool = pooled(torch.rand(2, 3, 5, 5), torch.rand(2, 3, 5, 5) > 0.4)
    expected = torch.stack([pool.iou()[0, 2], pool.iou()[1, 0], pool.iou()[2, 19]])
    assert torch.equal(pool.at([0.1, 0, 0.95]), expected)
    for bad in (0.13, -0.05, 1.0):
        with pytest.raises(DataError, match="threshold"):
            pool.at([0.1, bad, 0.95])


def test_update_refuses_other_shapes():
    with pytest.raises(ValueError, match="for 2 classes"):
        pooled_iou.PooledIoU(2).update(torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match="for 3 classes"):
        pooled_iou.PooledIoU(3).update(torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 3))


# IoU of mask files


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


# Hits


def test_hit_by_hand():
    mask = np.zeros((20, 40))
    mask[11:14, 33:38] = 1  # of a 4 x 4 map, the centre (row 12, column 35) of cell (2, 3), not its corner
    (coded,) = rle.encode(mask[None])
    for row in range(4):
        for column in range(4):
            saliency = np.full((4, 4), 0.1)
            saliency[row, column] = 0.2
            assert metrics.hit(coded, saliency) == ((row, column) == (2, 3))
    saliency[:] = 0
    assert not metrics.hit(rle.encode(np.ones((1, 20, 40)))[0], saliency)
    saliency[2, 3], saliency[0, 0] = 1, np.nan
    assert metrics.hit(coded, saliency)
    saliency[:] = np.nan
    assert not metrics.hit(coded, saliency)


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


# Bootstrap


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
