"""IoU at 20 thresholds by histogram, against binarising once for every threshold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chexseg.errors import DataError
from chexseg.evaluation import metrics, pooled_iou

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


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
    for known in (torch.ones(targets.shape[:2], dtype=torch.bool), targets[:, :, 0] > 0):
        found = pooled_iou._count(probabilities, targets, known)
        assert torch.equal(found, pooled_iou._count_on_cpu(probabilities, targets, known))
        assert found.sum() == known.sum() * targets.shape[2]


def test_a_gpu_is_never_waited_for():
    """Without values (on the device `meta`) whatever the host needs to know fails."""
    pool = pooled_iou.PooledIoU(3, "meta")
    pool.update(torch.rand(2, 3, 4, 5, device="meta"), torch.ones(2, 3, 4, 5, device="meta"))
    assert pool.counts.dtype == torch.int64


def test_images_whose_mask_is_unknown_do_not_count():
    torch.manual_seed(2)
    probabilities, targets = torch.rand(3, 2, 5, 5), torch.rand(3, 2, 5, 5) > 0.4
    known = torch.tensor([[True, False], [False, False], [True, True]])
    pool = pooled_iou.PooledIoU(2)
    pool.update(probabilities, targets, known)
    first = pooled(probabilities[[0, 2]], targets[[0, 2]]).counts[0]
    assert torch.equal(pool.counts, torch.stack([first, pooled(probabilities[2:], targets[2:]).counts[1]]))
    with pytest.raises(ValueError, match="known"):
        pool.update(probabilities, targets, known[:2])


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
    nothing = torch.zeros(()).double()
    assert torch.equal(pool.at([1.0, 0, 1.0]), torch.stack([nothing, expected[1], nothing]))
    assert pooled(torch.rand(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).at([1.0]).isnan().all()
    for bad in (0.13, -0.05, 1.05):
        with pytest.raises(DataError, match="threshold"):
            pool.at([0.1, bad, 0.95])


def test_update_refuses_other_shapes():
    with pytest.raises(ValueError, match="for 2 classes"):
        pooled_iou.PooledIoU(2).update(torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match="for 3 classes"):
        pooled_iou.PooledIoU(3).update(torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 3))
