"""Paths, affinities and the relation loss against loops over pairs."""

import math
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from chexseg.irnet import affinity


def naive_path(dy, dx):
    """Design's rule, point by point, with a real division."""
    points = set()
    for y in range(-20, 21):
        for x in range(-20, 21):
            inside = min(0, dy) <= y <= max(0, dy) and min(0, dx) <= x <= max(0, dx)
            if inside and (dy * x - dx * y) ** 2 / (dy**2 + dx**2) < 1 - 1e-9:
                points.add((y, x))
    return points


def pairs(height, width, radius):
    """Each unordered pair of pixels less than `radius` apart, once: (y, x, v, u)."""
    for y in range(height):
        for x in range(width):
            for v in range(height):
                for u in range(width):
                    if (y, x) < (v, u) and (v - y) ** 2 + (u - x) ** 2 < radius**2:
                        yield y, x, v, u


def naive_loss(logits, labels, radius):
    """The loss as the design tells it, class by class and pair by pair, through probabilities in float64."""
    boundary = logits.double().sigmoid()[:, 0]
    total, present = torch.zeros((), dtype=torch.float64), 0
    for c in range(labels.shape[1]):
        kinds = {"background": [], "foreground": [], "unlike": []}
        for b in range(labels.shape[0]):
            for y, x, v, u in pairs(*labels.shape[-2:], radius):
                first, second = int(labels[b, c, y, x]), int(labels[b, c, v, u])
                if 255 in (first, second):
                    continue
                steps = [boundary[b, y + p, x + q] for p, q in naive_path(v - y, u - x)]
                pair_affinity = 1 - torch.stack(steps).max()
                if first != second:
                    kinds["unlike"].append(-torch.log(1 - pair_affinity))
                else:
                    kinds["foreground" if first else "background"].append(-torch.log(pair_affinity))
        mean = {k: torch.stack(v).mean() if v else torch.zeros(()) for k, v in kinds.items()}
        if any(kinds.values()):
            present += 1
            total = total + (mean["background"] + mean["foreground"]) / 4 + mean["unlike"] / 2
    return total / max(present, 1)


def random_case(size, classes=3, batch=2, seed=0, absent=()):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, *size, generator=generator) * 2
    labels = torch.tensor([0, 1, 255], dtype=torch.uint8)[
        torch.randint(3, (batch, classes, *size), generator=generator)
    ]
    labels[:, list(absent)] = 255
    return logits, labels


@pytest.mark.parametrize("radius", [2, 3, 5, 10])
def test_directions_and_paths(radius):
    expected = {
        (y, x)
        for y in range(radius)
        for x in range(-radius, radius)
        if 0 < y * y + x * x < radius * radius and (y > 0 or x > 0)
    }
    assert set(affinity.directions(radius)) == expected
    assert len(affinity.directions(radius)) == len(expected)
    for direction in expected:
        points = affinity.path(*direction)
        assert set(points) == naive_path(*direction)
        assert len(points) == len(set(points))
        assert {(0, 0), direction} <= set(points)


def test_paths_are_worked_out_once():
    for direction in affinity.directions(10):
        affinity.path(*direction)
    misses = affinity.path.cache_info().misses
    for direction in affinity.directions(10):
        affinity.path(*direction)
    assert affinity.path.cache_info().misses == misses


def test_counts_known_from_the_original():
    assert len(affinity.directions(3)) == 12
    assert affinity.path(1, 1) == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert affinity.path(2, -1) == ((0, -1), (0, 0), (1, -1), (1, 0), (2, -1), (2, 0))
    assert affinity.path(0, 3) == ((0, 0), (0, 1), (0, 2), (0, 3))


@pytest.mark.parametrize("size", [(6, 7), (1, 8), (9, 2), (1, 1)])
def test_path_affinity_pair_by_pair(size):
    boundary = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    found = {}
    for (dy, dx), values in affinity.path_affinity(boundary, 5):
        assert values.shape == (2, 1, size[0] - dy, size[1] - abs(dx))
        for y in range(values.shape[-2]):
            for x in range(values.shape[-1]):
                left = x + max(0, -dx)
                found[y, left, y + dy, left + dx] = values[..., y, x]
    expected = set(pairs(*size, 5))
    assert {tuple(sorted(((y, x), (v, u)))) for y, x, v, u in found} == {((y, x), (v, u)) for y, x, v, u in expected}
    for (y, x, v, u), value in found.items():
        largest = torch.stack([boundary[..., y + p, x + q] for p, q in naive_path(v - y, u - x)]).amax(0)
        assert_close(value, 1 - largest)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize(
    ("size", "radius", "absent"),
    [((6, 7), 3, ()), ((5, 6), 10, (1,)), ((1, 9), 4, ()), ((7, 1), 5, (0, 2)), ((1, 1), 5, ()), ((8, 4), 2, ())],
)
def test_loss_and_gradient(size, radius, absent, engine):
    logits, labels = random_case(size, absent=absent)
    logits.requires_grad_()
    loss = affinity.relation_loss(logits, labels, radius, engine=engine)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = naive_loss(logits, labels, radius)
    assert_close(loss.double(), expected, atol=1e-6, rtol=1e-5)
    if expected.requires_grad:
        assert_close(gradient, torch.autograd.grad(expected, logits)[0].float(), atol=1e-6, rtol=1e-4)
    else:
        assert (gradient == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 11),
    st.integers(0, 999),
    st.sampled_from([1, 3, 14]),
)
def test_both_engines_count_the_same_pairs(size, radius, seed, classes):
    _, labels = random_case(size, classes, seed=seed)
    zeros, ones = affinity._bits(labels == 0), affinity._bits(labels == 1)
    assert torch.equal(affinity._count_in_torch(labels, radius), affinity._count_pairs(zeros, ones, radius, classes))


def test_pairs_beyond_what_float32_can_count():
    found = affinity._count_in_torch(torch.ones(1, 1, 601, 500, dtype=torch.uint8), 10)
    pairs = sum((601 - dy) * (500 - abs(dx)) for dy, dx in affinity.directions(10))
    assert pairs > 2**25 and found[:, 0].tolist() == [0, pairs, 0]


def test_a_gpu_is_never_waited_for(monkeypatch):
    """Without values (on the device `meta`) whatever the host needs to know fails; and no list is sent twice."""
    logits, labels = (t.to("meta") for t in random_case((6, 7)))
    assert affinity.relation_loss(logits, labels, 3).shape == ()
    monkeypatch.setattr(torch, "tensor", None)
    affinity.relation_loss(logits, labels, 3)


@pytest.mark.parametrize(("engine", "device"), [("cuda", "cpu"), ("", "cpu"), ("numba", "meta")])
def test_engines_that_do_not_exist(engine, device):
    with pytest.raises(ValueError, match="is not auto, torch or"):
        affinity.relation_loss(*(t.to(device) for t in random_case((4, 4))), engine=engine)


def test_loss_by_hand():
    """Two pixels, boundary 1/4 and 1/2: affinity 1/2. Class 0 is alike, class 1 is not, class 2 has no pair."""
    logits = torch.tensor([0.25, 0.5]).logit().view(1, 1, 1, 2)
    labels = torch.tensor([[[[1, 1]], [[0, 1]], [[1, 255]]]], dtype=torch.uint8)
    one = math.log(2)
    assert affinity.relation_loss(logits, labels).item() == pytest.approx((one / 4 + one / 2) / 2)
    assert affinity.relation_loss(logits, labels[:, :1]).item() == pytest.approx(one / 4)
    assert affinity.relation_loss(logits, torch.zeros_like(labels[:, :1])).item() == pytest.approx(one / 4)
    assert affinity.relation_loss(logits, labels[:, 1:]).item() == pytest.approx(one / 2)


def test_default_radius_is_ten():
    logits, labels = torch.zeros(1, 1, 1, 14), torch.full((1, 1, 1, 14), 255, dtype=torch.uint8)
    labels[..., 0] = 0
    for distance, counts in ((9, True), (10, False)):
        labels[..., 1:] = 255
        labels[..., distance] = 1
        assert (affinity.relation_loss(logits, labels) > 0) == counts


def test_ties_blame_one_pixel_and_lose_nothing():
    labels = torch.tensor([0, 1], dtype=torch.uint8)[torch.randint(2, (2, 2, 6, 6), generator=torch.Generator())]
    logits = torch.zeros(2, 1, 6, 6, requires_grad=True)
    loss = affinity.relation_loss(logits, labels, 3)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    loss.backward()
    # d/dz of softplus(z) and softplus(-z) at 0 is 1/2 and -1/2; weights of like and unlike pairs sum to 1/2 each.
    assert logits.grad.sum().item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("value", [300.0, -300.0, 1e4])
def test_extreme_logits_stay_finite(value):
    labels = torch.tensor([[[[0, 0, 1, 1]]]], dtype=torch.uint8)
    logits = torch.full((1, 1, 1, 4), value, requires_grad=True)
    loss = affinity.relation_loss(logits, labels)
    loss.backward()
    # One side of the loss is `value` itself: -log sigmoid(-z) -> z.
    assert loss.item() == pytest.approx(abs(value) / 2, rel=1e-5)
    assert torch.isfinite(logits.grad).all()


def test_a_logit_that_is_no_number_shows_in_the_loss():
    labels = torch.tensor([[[[0, 0, 1, 1]]]], dtype=torch.uint8)
    assert affinity.relation_loss(torch.full((1, 1, 1, 4), math.nan), labels).isnan()


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 6), st.integers(0, 999), st.permutations(range(3))
)
def test_invariances(size, radius, seed, order):
    logits, labels = random_case(size, seed=seed)
    loss = affinity.relation_loss(logits, labels, radius)
    for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.transpose(-1, -2), lambda t: t.flip(0)):
        assert_close(affinity.relation_loss(turn(logits), turn(labels), radius), loss)
    assert_close(affinity.relation_loss(logits, labels[:, order], radius), loss)
    assert loss >= 0
    # Absent classes add nothing, and a batch twice as large of the same images is the same mean.
    padded = torch.cat([labels, torch.full_like(labels[:, :2], 255)], dim=1)
    assert_close(affinity.relation_loss(logits, padded, radius), loss)
    assert_close(affinity.relation_loss(logits.repeat(2, 1, 1, 1), labels.repeat(2, 1, 1, 1), radius), loss)


def test_labels_nowhere():
    logits = torch.randn(2, 1, 5, 5, requires_grad=True)
    loss = affinity.relation_loss(logits, torch.full((2, 4, 5, 5), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_more_classes_than_the_paper_has():
    logits, labels = random_case((5, 5), classes=14, seed=3)
    assert_close(
        affinity.relation_loss(logits, labels, 3).double(), naive_loss(logits, labels, 3), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="15 classes"):
        affinity.relation_loss(logits, labels[:, :1].repeat(1, 15, 1, 1))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="do not fit"):
        affinity.relation_loss(torch.zeros(1, 1, 4, 5), torch.zeros(1, 2, 5, 4, dtype=torch.uint8))


def test_half_precision_logits():
    logits, labels = random_case((6, 6), seed=5)
    rough = logits.bfloat16()
    assert_close(affinity.relation_loss(rough, labels, 3), affinity.relation_loss(rough.float(), labels, 3))


def _one_of_two(rank, world, port, folder, logits, labels):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    mine = logits[rank::world].clone().requires_grad_()
    loss = affinity.relation_loss(mine, labels[rank::world], 3)
    loss.backward()
    torch.save((loss.detach(), mine.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_of_one(tmp_path):
    """Gradients arrive multiplied by the number of processes, which DistributedDataParallel's mean takes back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logits, labels = random_case((6, 7), batch=3)
    labels[0, 1] = labels[2, 1] = 255
    torch.multiprocessing.spawn(_one_of_two, (2, port, str(tmp_path), logits, labels), nprocs=2)
    logits.requires_grad_()
    expected = affinity.relation_loss(logits, labels, 3)
    expected.backward()
    for rank in range(2):
        loss, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert_close(loss, expected.detach())
        assert_close(gradient / 2, logits.grad[rank::2])
